"""Two pictures of a prediction: the risk over time, and the final risk against the learning rate."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tuner.theory.prediction import Prediction
from tuner.theory.problem import Floats, Problem
from tuner.theory.stability import plateau
from tuner.theory.trajectory import Trajectory

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#595959"
LOWEST = 1e-12
"""Fraction of the initial risk below which the risk is not drawn lower."""


def risk_over_time(prediction: Prediction, sde: Trajectory | None, runs: Trajectory | None, dimension: int) -> Figure:
    """Risk against time: the PDE, the SDE's median, and the median and range of SGD's runs."""
    figure, axes = _frame("time: steps/d", "risk P")
    floor = LOWEST * prediction.trajectory.risk[0, 0]
    if runs is not None:
        low, high = np.min(runs.risk, axis=0), np.max(runs.risk, axis=0)
        axes.fill_between(runs.times, _drawn(low, floor), _drawn(high, floor), color=GREY, alpha=0.25, linewidth=0)
        axes.plot(
            runs.times,
            _drawn(runs.median, floor),
            color=GREY,
            linewidth=1,
            label=f"SGD, {len(runs.risk)} runs, d = {dimension}",
        )
    if sde is not None:
        axes.plot(sde.times, _drawn(sde.median, floor), color=ORANGE, linestyle="--", label="SDE, as many particles")
    trajectory = prediction.trajectory
    axes.plot(
        trajectory.times, _drawn(trajectory.risk[0], floor), color=BLUE, linewidth=1.8, label="PDE, d to infinity"
    )
    axes.axhline(prediction.goal, color=GREY, linewidth=0.8, linestyle=":", label="goal")
    if prediction.plateau > 0:
        axes.axhline(prediction.plateau, color=BLUE, linewidth=0.8, linestyle=":", label="plateau")
    axes.set_yscale("log")
    axes.legend(frameon=False, fontsize=9)
    return figure


def plateau_against_lr(problem: Problem, critical: float, nu: float, measured: Mapping[float, Floats]) -> Figure:
    """The final risk against gamma_e: the closed form, its kink, and the late mean risk of each run of SGD.

    ``measured`` maps gamma_e to these means, (R,).
    """
    figure, axes = _frame("effective learning rate", "risk that is left")
    lrs = np.unique([*np.linspace(0.02, 2, 200), 1.0]) * critical
    axes.plot(lrs, [plateau(problem, float(lr), nu=nu) for lr in lrs], color=BLUE, linewidth=1.8, label="closed form")
    axes.axvline(critical, color=BLUE, linewidth=0.8, linestyle=":", label=f"critical, {critical:.4g}")
    for k, (lr, risks) in enumerate(measured.items()):
        finite = risks[np.isfinite(risks)]
        name = "SGD, each run" if k == 0 else None
        axes.plot([lr] * len(finite), finite, ".", color=GREY, alpha=0.6, label=name)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=9)
    return figure


def _frame(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.0, 3.6), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure, axes


def _drawn(risk: Floats, floor: float) -> Floats:
    return np.where(np.isfinite(risk), np.maximum(risk, floor), np.nan)
