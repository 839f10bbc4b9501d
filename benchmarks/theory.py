"""Cost and accuracy of `tuner.theory`, beside SGD on the standard problem.

python -m benchmarks.theory speed          time of the PDE and the closure, beside 64 runs of SGD
python -m benchmarks.theory refinement     error of the PDE against the size of its cells
python -m benchmarks.theory closure        the closure beside the PDE on random problems, against the learning rate
python -m benchmarks.theory gap            gap between a run and the limit against the dimension
python -m benchmarks.theory critical       the critical learning rate by bisection on SGD itself
python -m benchmarks.theory probability    share of runs under the predicted exponential, against the dimension
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch

from benchmarks.recording import conditions, parser, record, show
from tuner.core.errors import InvalidInput
from tuner.theory import convergence_rate, critical_lr_of, make_problem, standard_problem
from tuner.theory.closure import solve_closure
from tuner.theory.pde import solve_pde
from tuner.theory.sgd import simulate_sgd
from tuner.theory.steps import EffectiveSgd, Sgd
from tuner.theory.trajectory import Trajectory

Table: TypeAlias = tuple[tuple[str, ...], list[list[str]]]
TIMES = np.linspace(0, 6, 61)
LR = 0.4


def main() -> int:
    made = parser(__doc__, "theory")
    made.add_argument("part", choices=PARTS)
    made.add_argument("--dimension", type=int, help="coordinates in speed and critical. Default: 6400, 3200")
    made.add_argument("--runs", type=int, help="runs of SGD. Default: 64, 32")
    options = made.parse_args()
    torch.set_num_threads(1)
    before = conditions()
    columns, rows = PARTS[options.part](options.dimension, options.runs)
    show(options.part, columns, rows)
    record(options.out, before, {options.part: [dict(zip(columns, row, strict=True)) for row in rows]})
    return 0


def speed(dimension: int | None, num_runs: int | None) -> Table:
    problem, limit = standard_problem(), EffectiveSgd(lr=LR)
    dimension, num_runs = dimension or 6400, num_runs or 64
    solvers: dict[str, Callable[[], Trajectory]] = {
        "PDE": lambda: solve_pde(problem, limit, TIMES),
        "closure": lambda: solve_closure(problem, limit, TIMES),
        f"SGD, {num_runs} runs, d = {dimension}": lambda: simulate_sgd(
            problem, Sgd(lr=LR), TIMES, dimension=dimension, num_runs=num_runs
        ),
    }
    solve_closure(problem, limit, TIMES[:2])  # its imports are slow
    timed: dict[str, tuple[float, Trajectory]] = {}
    for name, solve in solvers.items():
        started = time.perf_counter()
        found = solve()
        timed[name] = time.perf_counter() - started, found
    reference, slowest = timed["PDE"][1], max(seconds for seconds, _ in timed.values())
    rows = [
        [name, f"{seconds:.3g}", f"{slowest / seconds:.3g}", f"{np.median(found.gap_to(reference)):.4f}"]
        for name, (seconds, found) in timed.items()
    ]
    return ("what", "seconds", "times as fast as the slowest", "gap to the PDE"), rows


def refinement(dimension: int | None, num_runs: int | None) -> Table:
    problem, limit, times = standard_problem(), EffectiveSgd(lr=LR), np.linspace(0, 6, 7)
    cells = (0.4, 0.2, 0.1, 0.05, 0.025)
    risks = [solve_pde(problem, limit, times, cell=cell).risk[0] for cell in cells]
    changes = [float(np.abs(coarse / fine - 1).max()) for coarse, fine in itertools.pairwise(risks)]
    orders = ["-", *(f"{np.log2(coarse / fine):.2f}" for coarse, fine in itertools.pairwise(changes))]
    rows = [[f"{c:g}", f"{change:.2e}", order] for c, change, order in zip(cells, changes, orders, strict=False)]
    return ("cell", "change of the risk when it is halved", "order"), rows


def closure(dimension: int | None, num_runs: int | None) -> Table:
    """The closure's error on 40 random problems; risks below 1e-8 of the first risk are left out."""
    generator, times = np.random.default_rng(5), np.linspace(0.25, 12, 48)
    starts = ((1, 0), (0.5, 0.2), (0.2, -0.1), (1.5, -0.5), (-0.7, 0.4), (0.3, 0.8))
    gaps: dict[float, list[tuple[float, float]]] = {0.05: [], 0.1: [], 0.2: [], 0.3: []}
    for number in range(40):
        size = int(generator.choice([1, 2, 3, 6, 12]))
        lam = generator.uniform(0.1, 2, size)
        target = generator.choice([0, 1], size, p=[0.25, 0.75]) * generator.normal(size=size)
        target = target if target.any() else np.full(size, 0.5)
        u, v = starts[number % len(starts)]
        problem = make_problem(lam, target, u=u, v=v, noise=float(generator.choice([0, 0, 0.3])))
        for part, found in gaps.items():
            limit = EffectiveSgd(lr=part * critical_lr_of(problem))
            try:
                risks = [solver(problem, limit, times).risk[0] for solver in (solve_closure, solve_pde)]
            except InvalidInput:  # one of the two leaves its range
                continue
            off = np.abs(risks[0] / risks[1] - 1)[risks[1] > 1e-8 * risks[1][0]]
            found.append((float(off.mean()), float(off.max())))
    rows = []
    for part, found in gaps.items():
        means, worst = np.transpose(found)
        rows.append(
            [f"{part:g}", str(len(found)), f"{np.median(means):.3f}", f"{means.max():.3f}", f"{worst.max():.3f}"]
        )
    return ("of the critical rate", "problems", "mean off: median", "mean off: worst", "worst"), rows


def gap(dimension: int | None, num_runs: int | None) -> Table:
    problem, num_runs = standard_problem(), num_runs or 32
    limit = solve_pde(problem, EffectiveSgd(lr=LR), TIMES)
    gaps = {
        d: simulate_sgd(problem, Sgd(lr=LR), TIMES, dimension=d, num_runs=num_runs).gap_to(limit)
        for d in (100, 400, 1600, 6400)
    }
    medians = {d: float(np.median(values)) for d, values in gaps.items()}
    slope = np.polyfit(np.log(list(medians)), np.log(list(medians.values())), 1)[0]
    rows = [[str(d), f"{medians[d]:.4f}", f"{values.min():.4f} to {values.max():.4f}"] for d, values in gaps.items()]
    return ("d", f"median gap of {num_runs} runs", "range"), [*rows, ["slope", f"{slope:.3f}", ""]]


def critical(dimension: int | None, num_runs: int | None) -> Table:
    """Bisection on the slope of log P: at the critical rate P' is about -P^2, so P falls as 1/t.

    A slower fall means a plateau, a faster one means none.
    """
    problem, times = standard_problem(), np.concatenate([[0.0], np.linspace(20, 40, 41)])
    predicted = critical_lr_of(problem)
    low, high, rows = 0.8 * predicted, 1.25 * predicted, []
    while high / low > 1.02:
        lr = (low * high) ** 0.5
        runs = simulate_sgd(problem, Sgd(lr=lr), times, dimension=dimension or 3200, num_runs=num_runs or 32)
        mean = runs.risk[:, 1:].mean(axis=0)
        slope = np.polyfit(np.log(times[1:]), np.log(mean), 1)[0] if np.isfinite(mean).all() else np.inf
        low, high = (low, lr) if slope > -1 else (lr, high)
        rows.append([f"{lr:.4f}", f"{mean[-1]:.3g}", f"{slope:.2f}", "plateau" if slope > -1 else "falls"])
    found = (low * high) ** 0.5
    rows.append([f"{found:.4f}", "", "", f"{found / predicted - 1:+.1%} of {predicted:.4f}"])
    return ("learning rate", "risk at t = 40", "slope in log t", "there is"), rows


def probability(dimension: int | None, num_runs: int | None) -> Table:
    """The share of runs under a multiple of a bound, for one type of coordinates.

    The bound is the least C exp(-.9 rho t) that the limit stays under until its risk is 1e-4.
    """
    problem, lr, num_runs = make_problem([1.0], [1.0]), 0.3, num_runs or 200
    long = solve_pde(problem, EffectiveSgd(lr=lr), np.linspace(0, 30, 301))
    rate = 0.9 * convergence_rate(problem, long.norm[:, -1], lr)
    times = long.times[: int(np.argmax(long.risk[0] < 1e-4)) + 1]
    bound = np.exp(-rate * times) * (long.risk[0, : len(times)] * np.exp(rate * times)).max()
    multiples, rows = (1.0, 1.1, 1.25, 1.5, 2.0), []
    for d in (25, 50, 100, 200, 400, 800):
        runs = simulate_sgd(problem, Sgd(lr=lr), times, dimension=d, num_runs=num_runs)
        rows.append([str(d), *(f"{(runs.risk <= many * bound).all(axis=1).mean():.3f}" for many in multiples)])
    return ("d", *(f"under {many:g} times it" for many in multiples)), rows


PARTS: dict[str, Callable[[int | None, int | None], Table]] = {
    "speed": speed,
    "refinement": refinement,
    "closure": closure,
    "gap": gap,
    "critical": critical,
    "probability": probability,
}

if __name__ == "__main__":
    sys.exit(main())
