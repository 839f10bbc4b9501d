"""Both costs side by side: gradient evaluations and seconds, and whether they put the variants in the same order."""

from __future__ import annotations

import itertools
import math

from tuner.core.metrics import target_label
from tuner.report.comparison import describe, ranking, times
from tuner.report.costs import Unit, seconds_per_evaluation, timing_figures
from tuner.report.document import Table
from tuner.study.results import Search

BOTH: tuple[Unit, Unit] = ("gradient_evaluations", "seconds")


def order(search: Search) -> tuple[str, ...]:
    """A sentence on the orders of the variants by median time to the highest target, if the two costs differ in it."""
    medians = _medians(search)
    names = [name for name in medians if all(math.isfinite(median) for median in medians[name].values())]
    reversed_pairs = [
        (i, j)
        for i, j in itertools.permutations(names, 2)
        if medians[i]["gradient_evaluations"] < medians[j]["gradient_evaluations"]
        and medians[i]["seconds"] > medians[j]["seconds"]
    ]
    if not reversed_pairs:
        return ()
    goal = target_label(search.spec.training.targets[-1])
    by_evaluations, by_seconds = (", ".join(sorted(names, key=lambda name: medians[name][unit])) for unit in BOTH)
    beside = "" if search.spec.cost == "seconds" else ", which were measured beside other work"
    return (
        f"The order by median time to {goal}% depends on the cost: by gradient evaluations it is {by_evaluations}; by "
        f"seconds of training{beside}, it is {by_seconds}.",
    )


def both_costs(search: Search) -> Table | None:
    """Seconds of each variant's gradient evaluations, and both costs to the highest target; None without trainings."""
    rates = {name: seconds_per_evaluation(search, name) for name in ranking(search)}
    known = {name: rate for name, rate in rates.items() if rate is not None}
    if not known:
        return None
    goal, base = search.spec.training.targets[-1], known.get(search.baseline)
    found = {(time.variant, time.unit): time.interval for time in times(search) if time.target == goal}
    rows = tuple(
        (
            name,
            f"{rate:.3g}",
            f"{rate / base:.3g}" if base else "-",
            _measured(search, name),
            *(describe(found[name, unit]) if (name, unit) in found else "-" for unit in BOTH),
        )
        for name, rate in known.items()
    )
    columns = (
        "variant",
        "seconds per gradient evaluation",
        f"over {search.baseline}'s",
        "measured",
        f"gradient evaluations to {target_label(goal)}%",
        f"seconds to {target_label(goal)}%",
    )
    note = (
        "Seconds to a target are gradient evaluations times the variant's seconds for one. Seconds that were measured "
        "beside other work depend on what else the machine did; --cost seconds measures them alone, before the race. "
        "The range is of the single timings. No interval here and no error rate covers how exact the seconds are."
    )
    return Table("costs", "Both costs of the best settings", columns, rows, " ".join([*order(search), note]))


def _measured(search: Search, name: str) -> str:
    """How a variant's seconds per gradient evaluation were measured."""
    if search.seconds.get(name) is None:
        num = sum(bool(record.history) for record in search.trainings() if record.variant == name)
        return f"beside other work, median of {num}"
    figures = timing_figures(search, name)
    return f"alone, median of {len(figures)} ({min(figures):.3g} to {max(figures):.3g})" if figures else "alone"


def _medians(search: Search) -> dict[str, dict[Unit, float]]:
    """Variant -> unit -> median cost of its confirmed runs to the highest target."""
    goal, found = search.spec.training.targets[-1], dict[str, dict[Unit, float]]()
    for time in times(search):
        if time.target == goal and time.unit in BOTH:
            found.setdefault(time.variant, {})[time.unit] = time.interval.estimate
    return found
