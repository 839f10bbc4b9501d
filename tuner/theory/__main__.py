"""The command ``python -m tuner.theory``: predictions of theory for SGD on a diagonal linear network.

python -m tuner.theory --lr 0.4                           critical rate, rate, plateau, time to the goal; two pictures
python -m tuner.theory --lr 0.1 --momentum 0.9 --batch 4
python -m tuner.theory --lr 0.4 --law exponential         random step lengths, which halve the critical rate
python -m tuner.theory --lr 0.4 --lam 1 0.5 --target 1 -2
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import numpy as np
import torch

from tuner.core.errors import ExitStatus, InvalidInput, command
from tuner.optimizers.random_scaling import LAWS
from tuner.theory.pictures import plateau_against_lr, risk_over_time
from tuner.theory.prediction import Prediction, predict
from tuner.theory.problem import Floats, Problem, grid_problem, make_problem, standard_problem
from tuner.theory.sde import simulate_sde
from tuner.theory.sgd import simulate_sgd
from tuner.theory.stability import effective_lr
from tuner.theory.steps import Sgd

LATE = np.linspace(30, 40, 21)
"""Times, in steps/d, over which the final risk is measured."""
MEASURED = (0.5, 0.8, 0.95, 1.05, 1.2, 1.5, 2.0)
"""Learning rates at which the final risk is measured, divided by the critical learning rate."""

NEGATIVE = re.compile(r"-(\d+\.?\d*|\.\d+)e[+-]?\d{1,3}", re.IGNORECASE)
"""Numbers such as -1e-3, which argparse mistakes for flags."""
LONGEST = 1000.0
"""Largest horizon, in steps/d; it takes minutes for the PDE and hours for the runs of SGD."""
MOST_NUMBERS = 2**28
"""Largest number of random numbers drawn for one step of all runs: 1 GiB."""


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; exit status 0, 2 for bad input, 130 after Ctrl-C."""
    words = sys.argv[1:] if argv is None else argv
    options = _parser().parse_args([f"{Decimal(word):f}" if NEGATIVE.fullmatch(word) else word for word in words])
    torch.set_num_threads(1)
    _check(options)
    problem, sgd = _problem(options), _sgd(options)
    square = problem.risk(np.zeros_like(problem.target))
    if square == 0:
        raise InvalidInput("--target: is 0 wherever --lam is not 0, so the labels have no variance to explain")
    goal = (1 - options.goal) * square
    prediction = predict(problem, sgd, dimension=options.dimension, goal=goal, horizon=options.horizon)
    if not options.no_pictures:
        _make(options.folder)
    print("\n".join(_said(prediction, sgd, options)))
    if not options.no_pictures:
        print(_draw(problem, sgd, prediction, options))
    return ExitStatus.OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tuner.theory", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lr", type=float, required=True, help="learning rate, of order 1 at one sample per step")
    parser.add_argument("--momentum", type=float, default=0.0, help="heavy-ball momentum, in [0, 1). Default: 0")
    parser.add_argument("--batch", type=int, default=1, help="samples per step. Default: 1")
    parser.add_argument("--law", choices=LAWS, default="none", help="law of a random step length. Default: none")
    parser.add_argument("--shape", type=float, default=2.0, help="shape of the gamma law. Default: 2")
    parser.add_argument("--decay", type=float, default=0.0, help="weight decay per step. Default: 0")
    parser.add_argument("--noise", type=float, default=0.0, help="standard deviation of the labels' noise. Default: 0")
    parser.add_argument(
        "--lam",
        type=float,
        nargs="+",
        help="eigenvalues of the inputs. Default: .2 .5 1 1.5 1.8, each with each target",
    )
    parser.add_argument("--target", type=float, nargs="+", help="target weights, one per --lam. Default: -1 0 .5 1.5")
    parser.add_argument("--grid", action="store_true", help="pair every --lam with every --target")
    parser.add_argument(
        "--start", type=float, nargs=2, metavar=("U", "V"), default=(1.0, 0.0), help="initial u, v. Default: 1 0"
    )
    parser.add_argument(
        "--goal", type=float, default=0.95, help="share of the labels' variance to explain. Default: 0.95"
    )
    parser.add_argument("--horizon", type=float, help="end of the prediction, in steps/d. Default: as the goal needs")
    parser.add_argument("--dimension", type=int, default=400, help="coordinates in the simulation. Default: 400")
    parser.add_argument("--runs", type=int, default=32, help="runs of SGD; 0 simulates nothing. Default: 32")
    parser.add_argument("--seed", type=int, default=0, help="seed of the simulations. Default: 0")
    parser.add_argument("--folder", type=Path, default=Path("theory"), help="folder of the pictures. Default: theory")
    parser.add_argument("--no-pictures", action="store_true", help="only print; simulate and draw nothing")
    return parser


def _check(options: argparse.Namespace) -> None:
    """Raises InvalidInput for values that are wrong for every problem."""
    if not 0 < options.goal < 1:
        raise InvalidInput(f"--goal {options.goal}: must be in (0, 1)")
    if options.runs < 0:
        raise InvalidInput(f"--runs {options.runs}: must be at least 0")
    if options.horizon is not None and not 0 < options.horizon <= LONGEST:
        raise InvalidInput(f"--horizon {options.horizon}: must be in (0, {LONGEST:g}]")
    if (options.lam is None) != (options.target is None):
        raise InvalidInput("--lam and --target: must be given together, one target per eigenvalue")
    if not 0 <= options.seed < 2**62:
        raise InvalidInput(f"--seed {options.seed}: must be in [0, 2^62)")
    if not options.no_pictures and options.runs * options.batch * options.dimension > MOST_NUMBERS:
        raise InvalidInput(
            f"--runs {options.runs}, --batch {options.batch}, --dimension {options.dimension}: are too many to "
            "simulate; give fewer, or --no-pictures"
        )


def _make(folder: Path) -> None:
    """Makes the folder before the computation, so a bad --folder loses no work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(f"--folder {folder}: cannot be made ({error.strerror})") from None


def _problem(options: argparse.Namespace) -> Problem:
    u, v = options.start
    if options.lam is None:
        standard = standard_problem()
        return make_problem(standard.lam, standard.target, u=u, v=v, noise=options.noise)
    make = grid_problem if options.grid else make_problem
    return make(options.lam, options.target, u=u, v=v, noise=options.noise)


def _sgd(options: argparse.Namespace) -> Sgd:
    names = ("lr", "momentum", "batch", "law", "shape", "decay")
    return Sgd(**{name: getattr(options, name) for name in names})


def _said(prediction: Prediction, sgd: Sgd, options: argparse.Namespace) -> list[str]:
    d, ratio, end = options.dimension, options.lr / prediction.critical_lr, prediction.trajectory.times[-1]
    critical = f"{prediction.critical_lr:.4g}; --lr is {ratio:.3g} times it" if ratio else "none, whatever the noise"
    lines = [
        f"effective learning rate   {prediction.effective_lr:.4g}, noise factor {prediction.nu:.4g}",
        f"critical learning rate    {critical}",
        f"    at initial weights    {prediction.first_critical_lr:.4g}",
        f"    linearised, d = {d}   {prediction.linearised_critical_lr:.4g} at time {end:.3g}",
        f"plateau                   {prediction.plateau:.4g}, initial risk {prediction.trajectory.risk[0, 0]:.4g}",
    ]
    if prediction.rate is not None:
        rate = f"{prediction.rate:.4g} per unit of time: late in the run the risk halves every"
        lines.append(f"late rate                 {rate} {math.log(2) / prediction.rate * d:.0f} steps")
    else:
        lines.append("late rate                 none: the risk does not fall to 0 exponentially")
    time = prediction.time_to_goal
    reached = f"{time:.3g}, or {time * d:.0f} steps" if math.isfinite(time) else f"not by time {end:.3g}"
    lines.append(f"time to {options.goal:.4g} explained    {reached}")
    if ratio > 1:
        lines.append("Above the critical rate, runs end at the plateau unless they diverge first, as some do.")
    elif options.lr > prediction.first_critical_lr:
        lines.append("Above the critical rate of the initial weights, the risk rises at first and some runs diverge.")
    if sgd.decay > 0:
        lines.append("Critical rates and plateau ignore weight decay; with it the risk does not fall to 0.")
    if not prediction.overdamped:
        lines.append(f"At d = {d} some directions oscillate; the limit has no momentum and is inaccurate here.")
    return lines


def _draw(problem: Problem, sgd: Sgd, prediction: Prediction, options: argparse.Namespace) -> str:
    """Simulates and draws; returns a line that names the pictures."""
    times = prediction.trajectory.times
    d, num_runs, seed = options.dimension, options.runs, options.seed
    runs = sde = None
    if num_runs:
        runs = simulate_sgd(problem, sgd, times, dimension=d, num_runs=num_runs, seed=seed)
        sde = simulate_sde(problem, sgd.effective(d), times, num_particles=d, num_runs=num_runs, seed=seed)
    pictures = {"risk": risk_over_time(prediction, sde, runs, d)}
    if math.isfinite(prediction.critical_lr):
        critical = effective_lr(prediction.critical_lr, sgd.momentum)
        measured: dict[float, Floats] = {}
        for ratio in MEASURED if num_runs else ():
            at_ratio = replace(sgd, lr=ratio * prediction.critical_lr, decay=0.0)
            late = simulate_sgd(problem, at_ratio, LATE, dimension=d, num_runs=min(num_runs, 8), seed=seed)
            measured[ratio * critical] = late.risk.mean(axis=1)
        pictures["plateau"] = plateau_against_lr(problem, critical, prediction.nu, measured)
    try:
        for name, figure in pictures.items():
            figure.savefig(options.folder / f"{name}.png")
    except OSError as error:
        raise InvalidInput(f"--folder {options.folder}: cannot be written ({error.strerror})") from None
    said = f"{options.folder}: {', '.join(f'{name}.png' for name in pictures)}"
    if runs is not None and runs.diverged.any():
        said += f"; {int(runs.diverged.sum())} of {len(runs.risk)} runs of SGD diverged"
    return said


if __name__ == "__main__":
    sys.exit(main())
