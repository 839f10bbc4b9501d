"""The sections of a report and their order: the answer, the pictures, then all that is needed to check the answer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from tuner.core.errors import InvalidInput
from tuner.core.metrics import target_label
from tuner.report import (
    budgets,
    claims,
    cost_order,
    critical_lr_check,
    curves,
    findings,
    profiles,
    race_figures,
    scatter,
    theory_check,
    verdict,
)
from tuner.report.comparison import Time, describe, ranking, times
from tuner.report.costs import UNITS
from tuner.report.document import Picture, Report, Section, Table
from tuner.report.leaderboard import exploration, leaderboard
from tuner.study.results import Search
from tuner.study.targets import NUM_PILOTS
from tuner.study.timings import NUM_TIMINGS
from tuner.study.trial_record import POINTS, Point


def report_of(search: Search) -> Report:
    """The report of one search, which may be unfinished; of one without targets yet, only what it has spent."""
    if not search.spec.training.targets:
        sections = [Section("Result", tuple(_state(search))), budgets.budgets(search), budgets.provenance(search)]
        return Report(_title(search), tuple(sections))
    differences = claims.verdict(search)
    begun = any(record.is_trial for record in search.records.values())
    board = leaderboard(search)
    # Seconds that were measured beside other work are no part of the answer: they stand with the table of both costs.
    measured_alone = search.spec.cost == "seconds"
    answer = (*verdict.answer(search), *(cost_order.order(search) if measured_alone else ())) if begun else ()
    costs = cost_order.both_costs(search) if begun else None
    tables = (costs, *_times(search)) if costs else ()
    sections = [
        Section("Result", (*answer, *_state(search)), tables=(board,)),
        race_figures.race(search),
        Section("Convergence", pictures=_drawn(curves.convergence, search)),
        Section("Time to target", pictures=_drawn(scatter.times_to_target, search), tables=tables),
        Section("Tuning curves", pictures=_drawn(curves.tuning_curves, search)),
        Section("Schedules of the winners", pictures=_drawn(curves.schedules, search)),
        theory_check.theory(search),
        _with(findings.divergence(search), _drawn(scatter.learning_rates, search)),
        _with(critical_lr_check.critical_lr(search), _drawn(critical_lr_check.ratios, search)),
        _with(findings.importance(search), _drawn(scatter.importance, search)),
        Section("Which differences are real", differences.sentences if begun else (), tables=differences.tables),
        claims.claims(search),
        claims.tuned_against_default(search),
        findings.edges(search),
        findings.stability(search),
        Section("Exploration", tables=(exploration(search),) if board.name == "leaderboard" else ()),
        budgets.budgets(search),
        budgets.provenance(search),
        budgets.limits(search),
    ]
    kept = [section for section in sections if section.sentences or section.pictures or section.tables]
    return Report(_title(search), tuple(kept))


def _title(search: Search) -> str:
    workload = search.spec.training.workload
    return f"{search.folder.name}: {workload.model} on {workload.data}"


def joint_report(searches: Sequence[Search]) -> Report:
    """The report over several searches; each search counts as one workload.

    Raises :class:`InvalidInput` if no variant is in all of them.
    """
    names = [search.folder.name for search in searches]
    made = profiles.performance_profiles(searches)
    if not made:
        raise InvalidInput(f"{' '.join(names)}: these searches have no variant in common")
    absent = profiles.left_out(searches)
    states = [f"{search.folder.name}: {said}" for search in searches for said in _state(search)]
    unconfirmed = [search.folder.name for search in searches if not times(search)]
    said = [f"{len(searches)} workloads have {len(made)} variants in common."]
    if absent:
        said.append(f"These variants are left out, because not every search has them: {', '.join(absent)}.")
    if unconfirmed:
        said.append(
            f"Nothing is confirmed in {', '.join(unconfirmed)}: there, all variants count as missing the target."
        )
    said += states
    rows = []
    for search in searches:
        target = (search.spec.training.targets or (math.nan,))[-1]
        found = {t.variant: t.interval for t in times(search) if (t.target, t.unit) == (target, "gradient_evaluations")}
        cells = [describe(found[p.variant]) if p.variant in found else "not confirmed" for p in made]
        workload = f"{search.spec.training.workload.model} on {search.spec.training.workload.data}"
        shown = "-" if math.isnan(target) else f"{target_label(target)}%"
        rows.append((search.folder.name, workload, shown, *cells))
    table = Table(
        "workloads",
        "The workloads",
        ("search", "workload", "target", *(profile.variant for profile in made)),
        tuple(rows),
        "Each cell is the median gradient evaluations to the target over fresh seeds, with its interval and level.",
    )
    pictures = _drawn(curves.profile, searches)
    return Report(
        f"{len(searches)} searches: {', '.join(names)}", (Section("Result", tuple(said), pictures, (table,)),)
    )


def _state(search: Search) -> list[str]:
    """How far the search has come, in at most one sentence; empty if it is finished."""
    trials = [record for record in search.records.values() if record.is_trial]
    if not trials and (len(search.records) or search.processes) and not search.studies:
        return ["The search's Optuna studies are missing, so its trials and the best of them are not known."]
    if not trials and (names := search.to_be_timed):
        ended, planned = sum(record.ended for record in search.timings()), NUM_TIMINGS * len(names)
        return [f"There is no result yet: {ended} of at least {planned} timings have ended."]
    if not search.spec.training.targets:
        ended = sum(record.ended for record in search.pilots())
        return [f"There is no result yet: {ended} of {NUM_PILOTS} trainings that set the targets have ended."]
    if not trials:
        return ["No trial has begun, so there is no result yet."]
    if running := sum(not record.ended for record in trials):
        return [f"The search is unfinished: {running} of {len(trials)} trials have not ended. The results may change."]
    if not search.race.is_over:
        counted, planned = len(search.race.rounds), search.spec.num_rounds
        return [f"The race is unfinished: {counted} of at most {planned} rounds are complete. The results may change."]
    # A run that confirms both points is made once.
    wanted = {(name, spec) for name in search.refined for point in POINTS for spec in search.wanted(name, point)}
    missing = wanted - {(r.variant, r.spec) for r in search.records.values() if r.phase == "confirm" and r.ended}
    if missing:
        return [f"The search is unfinished: {len(wanted) - len(missing)} of {len(wanted)} confirmed runs have ended."]
    finished = [r for r in search.records.values() if r.phase == "confirm" and r.status == "finished"]
    if untested := sum(record.test is None for record in finished):
        return [f"The test split has not been read for {untested} of {len(finished)} confirmed runs that finished."]
    return []


def _times(search: Search) -> tuple[Table, ...]:
    """One table per target: the cost of each variant's points in each unit."""
    note = (
        "Each cell is the median over fresh seeds; a miss counts as later than any time. The interval is by order "
        "statistics. It holds at the level in round brackets for any distribution. Seconds are gradient evaluations "
        "times the variant's seconds of training for one. Evaluation, compilation and warm-up are counted separately, "
        "under Budgets."
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
