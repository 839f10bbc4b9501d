"""Theory against measurement, for the workload ``diagonal``: the limit's prediction for each training, and its risk.

The limit (:mod:`tuner.theory`) is of infinitely many coordinates, so single trainings scatter around it.  Times to the
target are in steps without replays.  Predicted and measured times are both interpolated between evaluations.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np

from tuner.core.metrics import target_label
from tuner.report.document import Picture, Section, Table
from tuner.report.figures import CROWD, GREY, label, legend, mark, numbers, panels, sample, styles
from tuner.report.intervals import Interval, median_interval
from tuner.study.results import Search
from tuner.study.trial_record import TrialRecord
from tuner.theory.problem import standard_problem
from tuner.theory.trajectory import Trajectory
from tuner.workloads.population import DIMENSION, NUM_TRAIN, make_population

MODERATE = 0.3
"""Fraction of the critical rate up to which the closure is within 2% of the standard problem's risk, 4% at worst."""
MOST = 200
"""Most trainings that are compared, confirmed runs first; the prediction of one takes up to some seconds."""


@dataclass(frozen=True, slots=True)
class Foretold:
    """A training and the limit's prediction for it, as risks at its evaluations."""

    record: TrialRecord
    measured: Trajectory
    predicted: Trajectory
    times: tuple[float, float]
    """Steps to the target over d, predicted and measured; inf if the target is not reached."""

    @property
    def both_reached(self) -> bool:
        """Whether the target is reached in the prediction and in the measurement."""
        return all(map(math.isfinite, self.times))


def foretell(search: Search) -> tuple[list[Foretold], dict[str, Counter[str]]]:
    """The trainings that the limit covers, and variant -> reasons why others are not covered, with their counts."""
    # These import torch, which the driver does not need otherwise.
    from tuner.core.errors import InvalidInput
    from tuner.order import last_iterate
    from tuner.theory.coverage import limit_of, not_covered
    from tuner.theory.densities import Exploded
    from tuner.theory.prediction import solve_limit

    problem = standard_problem()
    goal = (1 - search.spec.training.targets[-1]) * make_population().label_square / 2
    found: list[Foretold] = []
    reasons: dict[str, Counter[str]] = {variant.name: Counter() for variant in search.variants}
    ended = [r for r in search.trainings() if r.observed and r.history]
    for record in sorted(ended, key=lambda record: record.phase != "confirm")[:MOST]:
        workload, optimizer = record.spec.workload, record.spec.optimizer
        steps_per_epoch = NUM_TRAIN // workload.batch_size
        try:
            limit = limit_of(
                optimizer,
                dimension=DIMENSION,
                batch=workload.batch_size,
                num_steps=last_iterate(optimizer.order, num_epochs=record.spec.epochs, steps_per_epoch=steps_per_epoch),
                steps_per_epoch=steps_per_epoch,
                squares=workload.model == "diagonal-squares",
            )
            # The start is added: no training evaluates it.
            steps = [0, *(metrics.steps for metrics in record.history if not metrics.diverged)]
            losses = [problem.first_risk, *(m.validation_loss for m in record.history if not m.diverged)]
            predicted = solve_limit(problem, limit, np.array(steps) / DIMENSION, moderate=MODERATE)
        except InvalidInput as error:
            # A solver's message advises its caller and contains the numbers of one training.
            failed = "its risk explodes" if isinstance(error, Exploded) else "its equation could not be solved"
            reasons[record.variant][not_covered(optimizer) or failed] += 1
            continue
        measured = _measured(steps, losses)
        times = float(predicted.time_to(goal)[0]), float(measured.time_to(goal)[0])
        found.append(Foretold(record, measured, predicted, times))
    return found, reasons


def theory(search: Search) -> Section:
    """The limit's predictions against the measurements; empty for other workloads."""
    if search.spec.training.workload.data != "diagonal":
        return Section("Theory")
    found, reasons = foretell(search)
    target = target_label(search.spec.training.targets[-1])
    rows = []
    for variant in search.variants:
        told = [one for one in found if one.record.variant == variant.name]
        ratios = [one.times[1] / one.times[0] for one in told if one.both_reached]
        ratio = f"{np.median(ratios):.3g} [{min(ratios):.3g}, {max(ratios):.3g}]" if ratios else "-"
        gaps = [float(one.measured.gap_to(one.predicted)[0]) for one in told]
        apart = sum(any(map(math.isfinite, one.times)) and not one.both_reached for one in told)
        why = "; ".join(f"{reason} ({count})" for reason, count in reasons[variant.name].items())
        gap = f"{np.median(gaps):.2g}" if gaps else "-"
        rows.append((variant.name, str(len(told)), gap, str(len(ratios)), ratio, str(apart), why or "-"))
    columns = ("variant", "covered", "gap", "reached", "measured over predicted", "only one reached", "not covered")
    note = (
        "The table counts trainings that ended. Covered are those to which the limit applies. The gap is the median "
        "over them of the risk's mean relative distance from the prediction. Reached are those that reached "
        f"{target}% both in theory and in measurement. The next column divides their measured steps by the predicted "
        "ones (median [smallest, largest]). Only one reached counts trainings where either theory or measurement "
        "reached the target alone. Not covered gives the reasons why the limit does not apply to the others. At "
        f"d = {DIMENSION} a single training is off by about 5% of the risk if its momentum has a short memory. It is "
        "off by more with random factors, because few steps see few of them."
    )
    table = Table("theory", "Theory and measurement", columns, tuple(rows), note)
    drawn = [one for one in found if one.record.phase == "confirm"] or found
    pictures = tuple(made for made in (_times(search, found), _curves(search, drawn)) if made)
    return Section("Theory", _said(found, target), pictures, (table,) if rows else ())


def _said(found: list[Foretold], target: str) -> tuple[str, ...]:
    both = [one.times for one in found if one.both_reached]
    if not found:
        return ("The theory's limit covers none of the trainings that ended.",)
    said = [
        f"The theory's limit covers {len(found)} trainings that ended. Of these, {len(both)} reached {target}% both in "
        "theory and in measurement."
    ]
    if len({p for p, _ in both}) > 2 and len({m for _, m in both}) > 2:
        from scipy.stats import spearmanr  # slow to import

        correlation = float(spearmanr([p for p, _ in both], [m for _, m in both]).statistic)
        off: Interval = median_interval([measured / predicted for predicted, measured in both])
        said.append(
            f"Spearman's rank correlation of the predicted and the measured time to the target is {correlation:.3f} "
            f"({len(both)} trainings). The median of measured over predicted is {off.estimate:.3g} [{off.low:.3g}, "
            f"{off.high:.3g}] ({off.level:.0%})."
        )
    return tuple(said)


def _times(search: Search, found: list[Foretold]) -> Picture | None:
    figure, (axes, *_) = panels([f"steps to {target_label(search.spec.training.targets[-1])}%"], height=3.4)
    looks = styles(variant.name for variant in search.variants)
    shown: list[float] = []
    names = []
    for name, (colour, dashes) in looks.items():
        both = [DIMENSION * np.array(one.times) for one in found if one.record.variant == name and one.both_reached]
        if both:
            names.append(name)
            shown += np.concatenate(both).tolist()
            axes.plot(
                *np.transpose(both), linestyle="none", color=colour, marker=mark(colour, dashes), markersize=5,
                alpha=0.7,
            )  # fmt: skip
    if not shown:
        return None
    ends = [0.8 * min(shown), 1.25 * max(shown)]
    axes.plot(ends, ends, color=GREY, linewidth=0.9, linestyle=":")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(*ends)
    axes.set_ylim(*ends)
    numbers(axes.xaxis, "log")
    numbers(axes.yaxis, "log")
    label(figure, "predicted", "measured")
    legend(figure, [sample(name, looks[name][0], marker=mark(*looks[name])) for name in names])
    title = "Steps to the target, measured against predicted by the limit. On the dotted line they are equal."
    return Picture("theory_times", title, figure)


def _curves(search: Search, drawn: list[Foretold]) -> Picture | None:
    names = list(dict.fromkeys(one.record.variant for one in drawn))
    if not names:
        return None
    figure, places = panels(names, height=0.0 if len(names) <= CROWD else 1.3)
    looks = styles(variant.name for variant in search.variants)
    for axes, name in zip(places, names, strict=True):
        for one in drawn:
            if one.record.variant == name:
                steps = DIMENSION * one.measured.times
                axes.plot(steps, one.measured.risk[0], color=looks[name][0], linewidth=3, alpha=0.5)
                axes.plot(steps, one.predicted.risk[0], color="black", linewidth=0.9, linestyle="--")
        axes.set_yscale("log")
        numbers(axes.xaxis, "count", most=4)
    label(figure, "steps", "risk")
    legend(figure, [sample("measured", dashes="-"), sample("theory", "black", dashes="--")])
    which = "confirmed runs" if drawn[0].record.phase == "confirm" else "trials"
    title = f"Risk of the {which} that the limit covers, measured and predicted by the limit, at their evaluations."
    return Picture("theory_curves", title, figure)


def _measured(steps: list[int], losses: list[float]) -> Trajectory:
    risk = np.array(losses)[None]
    unknown = np.full_like(risk, np.nan)
    return Trajectory(times=np.array(steps) / DIMENSION, risk=risk, curvature=unknown, norm=unknown, distance=unknown)
