"""Random scaling on losses like those of its theory, neither smooth nor convex: SGDM with each law against none.

    v <- beta v + g,    x <- x - s lr v,    one s per step, of mean 1:    none          1
                                                                          uniform       U(0, 2)
                                                                          gamma-4       Gamma of shape 4
                                                                          exponential   Exp(1)

Losses are F(x) = mean_i |f(x, a_i) - b_i| over 200 inputs a_i ~ N(0, I); a tenth of the labels b_i is wrong:

phase retrieval    f = <a, x>^2 in 20 dimensions: weakly convex
ReLU network       f = <u, max(W a, 0)>, 8 inputs and 4 hidden units: not even weakly convex

A seed fixes a data set, a start and an order of batches, the same for every law.  Learning rates are constant.  With
y_t the iterates under the weights of an exponential moving average, and ybar their mean, the measures are (lower is
better):

last, average      F(x_T) and F(ybar_T), each less F of the parameters that made the right labels
stationary         ||E grad F(y)|| + c E ||y - ybar||^2 at the end: an upper bound of the paper's measure of how far
                   ybar is from stationary, the least of this over all distributions of y with mean ybar
stationary, path   the mean of stationary over the path: its value for an average drawn at random, as in the theorem

For each law, momentum and measure, the learning rate with the best median over tuning seeds is chosen.  Then all runs
are repeated on fresh seeds.  Intervals for medians are between order statistics.  "below none" is the number of seeds
on which the law is below none, with the p-value of the sign test.  P-values are not corrected for the number of tests,
so some are small by chance.

Source of the law and the measure: Zhang and Cutkosky, ICML 2024, https://arxiv.org/abs/2405.09742
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from scipy.stats import binom, binomtest
from torch import Generator, Tensor
from torch.nn.functional import normalize

from benchmarks.recording import conditions, parser, record, show

NUM_INPUTS = 200
WRONG = 0.1
WRONG_FACTOR = 5.0
"""A wrong label is the right label of another input times this factor."""
HIDDEN = 4
LEVEL = 0.95
FRESH = 10_000
"""Difference between the seeds of the generators for fresh and for tuning seeds."""
CHUNK = 4
"""Seeds that run at once; more would not fit into a processor's cache."""
NONE = "none"
LAWS: dict[str, Callable[[int, Generator], Tensor]] = {
    NONE: lambda num, generator: torch.ones(num),
    "uniform": lambda num, generator: 2 * torch.rand(num, generator=generator),
    # The mean of k exponentials is Gamma of shape k.
    "gamma-4": lambda num, generator: torch.empty(4, num).exponential_(generator=generator).mean(0),
    "exponential": lambda num, generator: torch.empty(num).exponential_(generator=generator),
}
MOMENTA = (0.9, 0.99)
STEP_LENGTHS = tuple(10 ** (exponent / 3) for exponent in range(-11, -1))
"""Values of lr / (1 - beta); in these terms one grid suits both momenta."""
GRID = (len(LAWS), len(MOMENTA), len(STEP_LENGTHS))
MEASURES = ("last", "average", "stationary", "stationary, path")


@dataclass(frozen=True, slots=True)
class Problem:
    """The losses F of S seeds, evaluated at K points each; all shapes begin with S."""

    predict: Callable[[Tensor, Tensor], Tensor]
    """f: points (S, K, D), inputs (S, B, d) -> (S, K, B)."""
    inputs: Tensor
    """Inputs a_i, (S, N, d)."""
    labels: Tensor
    """Labels b_i, (S, N)."""
    planted: Tensor
    """Parameters that made the right labels, (S, 1, D)."""
    start: Tensor
    """Initial points, (S, 1, D)."""

    def loss(self, points: Tensor, batch: Tensor | None = None) -> Tensor:
        """F at points (S, K, D), shape (S, K); if given, ``batch`` (S, B) selects inputs by position."""
        rows = torch.arange(len(points))[:, None]
        inputs = self.inputs if batch is None else self.inputs[rows, batch]
        labels = self.labels if batch is None else self.labels[rows, batch]
        return (self.predict(points, inputs) - labels[:, None]).abs().mean(-1)

    def gradient(self, points: Tensor, batch: Tensor | None = None) -> Tensor:
        """The gradient of F at points (S, K, D), (S, K, D)."""
        points = points.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(self.loss(points, batch).sum(), points)
        return gradient


def squared_product(points: Tensor, inputs: Tensor) -> Tensor:
    """<a, x>^2."""
    return (points @ inputs.mT).square()


def unit_vector(num_seeds: int, generator: Generator) -> Tensor:
    """Random unit vectors x with 20 coordinates, (S, 1, 20)."""
    return normalize(torch.randn(num_seeds, 1, 20, generator=generator), dim=-1)


def relu_network(points: Tensor, inputs: Tensor) -> Tensor:
    """<u, max(W a, 0)>; points hold W's rows and then u."""
    first, second = points[..., :-HIDDEN].unflatten(-1, (HIDDEN, -1)), points[..., -HIDDEN:]
    hidden = torch.einsum("skhd,sbd->skhb", first, inputs).relu()
    return (second[..., None, :] @ hidden).squeeze(-2)


def relu_weights(num_seeds: int, generator: Generator) -> Tensor:
    """Random W and u for 8 inputs, so that outputs are of order 1."""
    first = torch.randn(num_seeds, 1, HIDDEN * 8, generator=generator) / math.sqrt(8)
    return torch.cat([first, torch.randn(num_seeds, 1, HIDDEN, generator=generator) / math.sqrt(HIDDEN / 2)], -1)


PROBLEMS = {"phase retrieval": (squared_product, unit_vector, 20), "ReLU network": (relu_network, relu_weights, 8)}


def make_problem(name: str, num_seeds: int, generator: Generator) -> Problem:
    """The problem of this name on fresh data."""
    predict, point, num_features = PROBLEMS[name]
    inputs = torch.randn(num_seeds, NUM_INPUTS, num_features, generator=generator)
    planted = point(num_seeds, generator)
    right = predict(planted, inputs).squeeze(1)
    wrong = torch.rand(right.shape, generator=generator) < WRONG
    labels = torch.where(wrong, WRONG_FACTOR * right.roll(1, -1), right)
    return Problem(predict, inputs, labels, planted, point(num_seeds, generator))


def measured(name: str, num_seeds: int, generator: Generator, chosen: argparse.Namespace) -> Tensor:
    """The measures of all laws, momenta and learning rates, shape (measures, S, *GRID); inf for a run that diverged."""
    parts = [min(CHUNK, num_seeds - first) for first in range(0, num_seeds, CHUNK)]
    return torch.cat([_measured(name, part, generator, chosen) for part in parts], 1).nan_to_num(math.inf)


def _measured(name: str, num_seeds: int, generator: Generator, chosen: argparse.Namespace) -> Tensor:
    problem = make_problem(name, num_seeds, generator)
    beta = torch.tensor(MOMENTA)[:, None].expand(GRID).reshape(-1, 1)
    lr = (1 - beta) * torch.tensor(STEP_LENGTHS).expand(GRID).reshape(-1, 1)
    x = problem.start.repeat(1, len(lr), 1)
    v, full, new = torch.zeros_like(x), problem.gradient(x), 1 - chosen.decay**chosen.every
    average, variance, average_gradient = x.clone(), torch.zeros(x.shape[:2]), full.clone()
    path: list[Tensor] = []
    for step in range(1, chosen.steps + 1):
        batch = torch.randint(NUM_INPUTS, (num_seeds, chosen.batch_size), generator=generator)
        s = torch.stack([draw(num_seeds, generator) for draw in LAWS.values()], 1)
        v.mul_(beta).add_(full if chosen.full_batch else problem.gradient(x, batch))
        x.addcmul_(s.repeat_interleave(math.prod(GRID[1:]), 1)[..., None] * lr, v, value=-1)
        if chosen.full_batch or step % chosen.every == 0:
            full = problem.gradient(x)
        if step % chosen.every == 0:
            ahead = x - average
            average += new * ahead
            variance = (1 - new) * (variance + new * ahead.square().sum(-1))
            average_gradient.lerp_(full, new)
            path.append(torch.linalg.vector_norm(average_gradient, dim=-1) + chosen.c * variance)
    floor = problem.loss(problem.planted)
    stationary = (path[-1], torch.stack(path).mean(0))
    measures = torch.stack([problem.loss(x) - floor, problem.loss(average) - floor, *stationary])
    return measures.reshape(len(measures), num_seeds, *GRID)


def median_interval(values: Tensor) -> tuple[float, float, float]:
    """The median and its interval between order statistics; :func:`interval_level` is the level."""
    ordered = values.sort().values
    rank = _rank(len(values))
    return float(_median(values)), float(ordered[rank - 1]), float(ordered[-rank])


def interval_level(num_seeds: int) -> float:
    """Level of the narrowest symmetric interval between order statistics whose level is at least LEVEL."""
    return float(1 - 2 * binom.cdf(_rank(num_seeds) - 1, num_seeds, 0.5))


def _median(values: Tensor) -> Tensor:
    """The median over the first dimension; torch's quantile would give NaN for two infinities."""
    ordered, num = values.sort(0).values, len(values)
    return (ordered[(num - 1) // 2] + ordered[num // 2]) / 2


def _rank(num_seeds: int) -> int:
    return int(binom.ppf((1 - LEVEL) / 2, num_seeds, 0.5))


def below(values: Tensor, others: Tensor) -> dict[str, float]:
    """On how many seeds without a tie the values are below the others, and the p-value of the two-sided sign test."""
    lower, num = int((values < others).sum()), int((values != others).sum())
    return {"lower": lower, "of": num, "p": float(binomtest(lower, num).pvalue) if num else 1.0}


def compare(tuning: Tensor, fresh: Tensor) -> list[dict[str, Any]]:
    """One dictionary of figures per momentum and law, for one measure; both tensors are (S, *GRID)."""
    best = _median(tuning).argmin(-1)
    figures = []
    for momentum, (row, law) in product(range(len(MOMENTA)), enumerate(LAWS)):
        own, reference = int(best[row, momentum]), int(best[0, momentum])
        values, none = fresh[:, row, momentum], fresh[:, 0, momentum]
        figures.append(
            {
                "momentum": MOMENTA[momentum],
                "law": law,
                "lr": (1 - MOMENTA[momentum]) * STEP_LENGTHS[own],
                "at_end": own in (0, len(STEP_LENGTHS) - 1),
                "median": median_interval(values[:, own]),
                "tuned": below(values[:, own], none[:, reference]),
                "reference": reference,
                "same_lr": [below(*both) for both in zip(values.unbind(1), none.unbind(1), strict=True)],
                "medians": _median(values).tolist(),
            }
        )
    return figures


def lines(figures: list[dict[str, Any]]) -> list[list[str]]:
    """Rows of the table: each law at its own learning rate and at that of none, both against none at its own."""

    def count(test: dict[str, float], law: str) -> str:
        return "" if law == NONE else f"{test['lower']} of {test['of']}, p {test['p']:.2g}"

    made = []
    for row in figures:
        median, low, high = row["median"]
        made.append(
            [
                f"{row['momentum']} {row['law']}",
                f"{row['lr']:.2g}{'*' if row['at_end'] else ''}",
                f"{median:.3g} ({low:.3g}, {high:.3g})",
                count(row["tuned"], row["law"]),
                f"{row['medians'][row['reference']]:.3g}",
                count(row["same_lr"][row["reference"]], row["law"]),
            ]
        )
    return made


def tally(figures: list[dict[str, Any]]) -> list[list[str]]:
    """One row per law: how many of its comparisons with none have a small p-value, by side."""

    def sides(tests: list[dict[str, float]]) -> str:
        small = [2 * test["lower"] < test["of"] for test in tests if test["p"] < 1 - LEVEL]
        return f"{small.count(False)} below, {small.count(True)} above, of {len(tests)}"

    made = []
    for law in LAWS:
        rows = [row for row in figures if row["law"] == law]
        made.append([law, sides([row["tuned"] for row in rows]), sides([t for row in rows for t in row["same_lr"]])])
    return made[1:]


def main() -> None:
    """Tunes, repeats the runs on fresh seeds and prints one table per measure."""
    options = parser(__doc__, "nonsmooth")
    options.add_argument("--seeds", type=int, default=64, help="fresh seeds, at least 6")
    options.add_argument("--tuning-seeds", type=int, default=32)
    options.add_argument("--seed", type=int, default=0, help="seed of the tuning and the fresh seeds, below 10,000")
    options.add_argument("--steps", type=int, default=1500)
    options.add_argument("--batch-size", type=int, default=4)
    options.add_argument(
        "--full-batch", action="store_true", help="gradients without noise, so the law's noise is the only one"
    )
    options.add_argument("--decay", type=float, default=0.99, help="weight of the past in the average, per step")
    options.add_argument(
        "--every",
        type=int,
        default=1,
        help="steps between two iterates in the average; above 1 cycles of the iterates distort it",
    )
    options.add_argument(
        "--c", type=float, default=10.0, help="weight c of the variance around the average, in 1/length^2"
    )
    options.add_argument("--problems", nargs="+", choices=tuple(PROBLEMS), default=tuple(PROBLEMS))
    chosen = options.parse_args()
    if chosen.seeds < 6:
        options.error(f"--seeds {chosen.seeds}: must be at least 6, for an interval of {LEVEL:.0%}")
    torch.set_num_threads(1)
    before, started = conditions(), time.perf_counter()
    figures: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for name in chosen.problems:
        tuning = measured(name, chosen.tuning_seeds, Generator().manual_seed(chosen.seed), chosen)
        fresh = measured(name, chosen.seeds, Generator().manual_seed(FRESH + chosen.seed), chosen)
        figures[name] = {}
        for number, measure in enumerate(MEASURES):
            figures[name][measure] = compare(tuning[number], fresh[number])
            columns = ["momentum, law", "lr", "median", "below none", "at none's lr", "below none"]
            show(f"{name}: {measure}", columns, lines(figures[name][measure]))
        every = [row for rows in figures[name].values() for row in rows]
        show(
            f"{name}: comparisons with p < {1 - LEVEL:.2g}", ["law", "lr tuned", "same lr, all the grid"], tally(every)
        )
    print(
        f"Medians with {interval_level(chosen.seeds):.1%} intervals over {chosen.seeds} fresh seeds; lr tuned on "
        f"{chosen.tuning_seeds} others, * at the grid's end; c = {chosen.c:g}; {time.perf_counter() - started:.0f} s."
    )
    settings = {name: value for name, value in vars(chosen).items() if name != "out"}
    record(chosen.out, before, {"settings": settings, "step_lengths": STEP_LENGTHS, "problems": figures})


if __name__ == "__main__":
    main()
