"""What stands in a report, in which order: the answer, then pictures, then all that must be known to believe it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from tuner.core.errors import InvalidInput
from tuner.core.metrics import target_label
from tuner.report import budgets, claims, critical_lr_check, curves, findings, profiles, scatter, theory_check
from tuner.report.comparison import UNITS, Time, compare, describe, ranking, times
from tuner.report.document import Picture, Report, Section, Table
from tuner.report.figures import CROWD
from tuner.report.leaderboard import exploration, leaderboard
from tuner.report.tuning_curves import tuning_curve
from tuner.study.results import POINTS, Point, Search


def report_of(search: Search) -> Report:
    """The report of one search, however far it has come."""
    verdict = claims.verdict(search)
    begun = any(record.phase == "explore" for record in search.records.values())
    answer = () if not begun else verdict.sentences if len(verdict.sentences) < CROWD else _in_short(search)
    board = leaderboard(search)
    sections = [
        Section("Result", (*_state(search), *answer), tables=(board,)),
        Section("Convergence", pictures=_drawn(curves.convergence, search)),
        Section("Time to target", pictures=_drawn(scatter.times_to_target, search), tables=_times(search)),
        Section("Tuning curves", _coverages(search), _drawn(curves.tuning_curves, search)),
        Section("Schedules of the winners", pictures=_drawn(curves.schedules, search)),
        theory_check.theory(search),
        _with(findings.divergence(search), _drawn(scatter.learning_rates, search)),
        _with(critical_lr_check.critical_lr(search), _drawn(critical_lr_check.ratios, search)),
        _with(findings.importance(search), _drawn(scatter.importance, search)),
        Section(
            "Which differences are real",
            verdict.sentences if answer != verdict.sentences else (),
            tables=verdict.tables,
        ),
        claims.claims(search),
        claims.tuned_against_default(search),
        findings.edges(search),
        findings.stability(search),
        Section("Exploration", tables=(exploration(search),) if board.name == "leaderboard" else ()),
        budgets.budgets(search),
        budgets.provenance(search),
        budgets.limits(search),
    ]
    spec = search.spec
    kept = [section for section in sections if section.sentences or section.pictures or section.tables]
    return Report(f"{search.folder.name}: {spec.training.workload.model} on {spec.training.workload.data}", tuple(kept))


def joint_report(searches: Sequence[Search]) -> Report:
    """The report over several searches, each of them a workload.

    Raises :class:`InvalidInput` where no variant is in all of them.
    """
    names = [search.folder.name for search in searches]
    made = profiles.performance_profiles(searches)
    if not made:
        raise InvalidInput(f"{' '.join(names)}: these searches have no variant in common")
    absent = profiles.left_out(searches)
    states = [f"{search.folder.name}: {said}" for search in searches for said in _state(search)]
    unconfirmed = [search.folder.name for search in searches if not times(search)]
    said = [f"{len(searches)} workloads, {len(made)} variants that all of them have."]
    if absent:
        said.append(f"Left out, as not every search has them: {', '.join(absent)}.")
    if unconfirmed:
        said.append(f"Nothing is confirmed in {', '.join(unconfirmed)}, which counts as not reached by anybody.")
    said += states
    rows = []
    for search in searches:
        target = search.spec.training.targets[-1]
        found = {t.variant: t.interval for t in times(search) if (t.target, t.unit) == (target, "gradient_evaluations")}
        cells = [describe(found[p.variant]) if p.variant in found else "not confirmed" for p in made]
        workload = f"{search.spec.training.workload.model} on {search.spec.training.workload.data}"
        rows.append((search.folder.name, workload, f"{target_label(target)}%", *cells))
    table = Table(
        "workloads",
        "The workloads",
        ("search", "workload", "target", *(profile.variant for profile in made)),
        tuple(rows),
        "Median gradient evaluations to the target over fresh seeds, the interval, and the level it holds at.",
    )
    pictures = _drawn(curves.profile, searches)
    return Report(
        f"{len(searches)} searches: {', '.join(names)}", (Section("Result", tuple(said), pictures, (table,)),)
    )


def _in_short(search: Search) -> tuple[str, ...]:
    """The verdicts on many variants, in a sentence for each kind."""
    baseline, groups = search.baseline, dict[str, list[str]]()
    for made in compare(search):
        if made.verdict != "undecided":
            group = f"{made.verdict.capitalize()} than {baseline}, the luck of both searches included"
        elif made.settings_verdict != "undecided":
            group = f"Settings found that are {made.settings_verdict} by equal seeds, the variant undecided"
        else:
            group = f"Undecided against {baseline}"
        groups.setdefault(group, []).append(made.variant)
    return tuple(f"{group}: {', '.join(names)}." for group, names in sorted(groups.items()))


def _state(search: Search) -> list[str]:
    """How far the search has come, where it has not come to its end."""
    trials = [record for record in search.records.values() if record.phase == "explore"]
    ended = sum(record.ended for record in trials)
    planned = search.spec.trials * len(search.variants)
    if not trials and (len(search.records) or search.processes) and not search.studies:
        return ["Its Optuna studies are not there: which trials there were, and the best of them, cannot be said."]
    if not trials:
        return ["No trial has begun: nothing can be said yet."]
    if ended < planned:
        return [f"Unfinished: {ended} of {planned} trials have ended. What stands here may still change."]
    # A run that confirms both points is made once.
    wanted = {(v.name, spec) for v in search.variants for point in POINTS for spec in search.wanted(v.name, point)}
    missing = wanted - {(r.variant, r.spec) for r in search.records.values() if r.phase == "confirm" and r.ended}
    if missing:
        return [f"Unfinished: {len(wanted) - len(missing)} of {len(wanted)} confirmed runs have ended."]
    finished = [r for r in search.records.values() if r.phase == "confirm" and r.status == "finished"]
    if untested := sum(record.test is None for record in finished):
        return [f"The test split has not been read for {untested} of {len(finished)} confirmed runs that finished."]
    return []


def _coverages(search: Search) -> tuple[str, ...]:
    """How often such bands hold, once for the variants of which the same is said."""
    notes: dict[str, list[str]] = {}
    for variant in search.variants:
        if curve := tuning_curve(search, variant.name):
            notes.setdefault(curve.note, []).append(variant.name)
    return tuple(f"{', '.join(names)}: {note}" for note, names in notes.items())


def _times(search: Search) -> tuple[Table, ...]:
    """A table a target: what each point costs in each unit."""
    note = (
        "Median over fresh seeds, a miss being later than any time; the interval is of order statistics and holds at "
        "the level in round brackets, whatever the distribution. Seconds are of training: evaluation, compilation and "
        "warm-up are counted apart, under Budgets."
    )
    columns = ("variant", "point", *(unit.replace("_", " ") for unit in UNITS), "reached")
    order = ranking(search)
    found = [t for point in POINTS for t in sorted(times(search, point), key=lambda time: order.index(time.variant))]
    tables: list[Table] = []
    for target in search.spec.training.targets if found else ():
        rows: dict[tuple[str, str], list[Time]] = {}
        for time in found:
            if time.target == target:
                rows.setdefault((time.variant, _said(time.point)), []).append(time)
        cells = tuple(
            (*place, *(describe(time.interval) for time in line), f"{line[0].reached}/{line[0].num_seeds}")
            for place, line in rows.items()
        )
        label = target_label(target)
        tables.append(Table(f"times_to_{label}", f"Time to {label}%", columns, cells, note if not tables else ""))
    return tuple(tables)


def _said(point: Point) -> str:
    return "best settings" if point == "best" else "default point"


def _drawn(draw: Callable[..., Picture | None], what: object) -> tuple[Picture, ...]:
    picture = draw(what)
    return (picture,) if picture else ()


def _with(section: Section, pictures: tuple[Picture, ...]) -> Section:
    return dataclasses.replace(section, pictures=(*section.pictures, *pictures))
