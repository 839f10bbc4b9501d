"""The sections of a report and their order: the answer, the pictures, then all that is needed to check the answer."""

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
    """The report of one search, which may be unfinished."""
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
        "Each cell is the median gradient evaluations to the target over fresh seeds, with its interval and level.",
    )
    pictures = _drawn(curves.profile, searches)
    return Report(
        f"{len(searches)} searches: {', '.join(names)}", (Section("Result", tuple(said), pictures, (table,)),)
    )


def _in_short(search: Search) -> tuple[str, ...]:
    """The verdicts on many variants, in one sentence per kind of verdict."""
    baseline, groups = search.baseline, dict[str, list[str]]()
    for made in compare(search):
        if made.verdict != "undecided":
            group = f"{made.verdict.capitalize()} than {baseline}, with the luck of both searches included"
        elif made.settings_verdict != "undecided":
            group = f"Settings found that are {made.settings_verdict} by equal seeds, while the variant is undecided"
        else:
            group = f"Undecided against {baseline}"
        groups.setdefault(group, []).append(made.variant)
    return tuple(f"{group}: {', '.join(names)}." for group, names in sorted(groups.items()))


def _state(search: Search) -> list[str]:
    """How far the search has come, in at most one sentence; empty if it is finished."""
    trials = [record for record in search.records.values() if record.phase == "explore"]
    ended = sum(record.ended for record in trials)
    planned = search.spec.trials * len(search.variants)
    if not trials and (len(search.records) or search.processes) and not search.studies:
        return ["The search's Optuna studies are missing, so its trials and the best of them are not known."]
    if not trials:
        return ["No trial has begun, so there is no result yet."]
    if ended < planned:
        return [f"The search is unfinished: {ended} of {planned} trials have ended. The results may still change."]
    # A run that confirms both points is made once.
    wanted = {(v.name, spec) for v in search.variants for point in POINTS for spec in search.wanted(v.name, point)}
    missing = wanted - {(r.variant, r.spec) for r in search.records.values() if r.phase == "confirm" and r.ended}
    if missing:
        return [f"The search is unfinished: {len(wanted) - len(missing)} of {len(wanted)} confirmed runs have ended."]
    finished = [r for r in search.records.values() if r.phase == "confirm" and r.status == "finished"]
    if untested := sum(record.test is None for record in finished):
        return [f"The test split has not been read for {untested} of {len(finished)} confirmed runs that finished."]
    return []


def _coverages(search: Search) -> tuple[str, ...]:
    """How often the bands hold: one sentence per group of variants with equal numbers."""
    notes: dict[str, list[str]] = {}
    for variant in search.variants:
        if curve := tuning_curve(search, variant.name):
            notes.setdefault(curve.note, []).append(variant.name)
    return tuple(f"{', '.join(names)}: {note}" for note, names in notes.items())


def _times(search: Search) -> tuple[Table, ...]:
    """One table per target: the cost of each variant's points in each unit."""
    note = (
        "Each cell is the median over fresh seeds; a miss counts as later than any time. The interval is by order "
        "statistics. It holds at the level in round brackets for any distribution. Seconds are seconds of training. "
        "Evaluation, compilation and warm-up are counted separately, under Budgets."
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
