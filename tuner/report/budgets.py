"""What a search spent, how it was made, and its limitations."""

from __future__ import annotations

import itertools
import math
import shlex
from datetime import timedelta

from tuner.core.metrics import ACCURACY, target_label
from tuner.core.search_spec import SearchSpec, flag
from tuner.report.costs import cost
from tuner.report.document import Section, Table
from tuner.report.verdict import random_settings
from tuner.study.results import Search
from tuner.study.trial_record import POINTS, TrialRecord

NOT_REPEATED = frozenset(
    {"name", "resume", "output", "storage", "tracking_uri", "experiment", "address", "download", "dry_run", "list"}
)
"""Fields of a search that a repeated search need not share: where it is stored and what is done with it."""


def budgets(search: Search) -> Section:
    """What each variant spent in each phase, according to its trainings' logs, and in what the budgets were equal."""
    phases: dict[tuple[str, str], list[TrialRecord]] = {}
    for variant in search.variants:
        kept = {run.name: f"confirm, {p}" for p in POINTS[::-1] for run in search.confirmed(variant.name, p).values()}
        for record in search.records.values():
            if record.variant == variant.name:
                confirms = kept.get(record.name, "confirm, given up")
                phase = confirms if record.phase == "confirm" else record.phase
                phases.setdefault((variant.name, phase), []).append(record)
    rows = [(*key, *_spent(records)) for key, records in phases.items()]
    rows.append(("all", "all", *_spent(list(search.records.values()))))
    columns = (
        "variant",
        "phase",
        "ended",
        "failed",
        "gradient evaluations",
        "epochs",
        "seconds of training",
        "of evaluation",
        "of compilation and warm-up",
        "of curvature",
    )
    note = "The trainings of the phase timing measure seconds per gradient evaluation. " if search.timings() else ""
    note += "The trainings of the phase pilot set the targets. " if search.pilots() else ""
    note += (
        "The numbers come from the logs, including those of trainings that failed or have not ended. Work that was "
        "lost when a process was killed is in no log. The seconds of training do not include evaluation, compilation "
        'and curvature. The phase "confirm, given up" has confirmed runs of settings that are no longer the best. '
        "A run that confirms both points is counted once."
    )
    table = Table("budgets", "What was spent", columns, tuple(rows), note)
    return Section("Budgets", _equality(search), tables=(table,))


def _spent(records: list[TrialRecord]) -> tuple[str, ...]:
    ended = [record for record in records if record.ended]
    failed = sum(record.status == "failed" for record in ended)
    last = [record.history[-1] for record in records if record.history]
    seconds = [
        sum(getattr(metrics, name) for metrics in last)
        for name in ("seconds", "evaluation_seconds", "compile_seconds", "curvature_seconds")
    ]
    counts = (len(ended) - failed, failed, sum(m.gradient_evaluations for m in last), sum(m.epoch for m in last))
    return *map(str, counts), *(f"{value:.1f}" for value in seconds)


def _equality(search: Search) -> tuple[str, ...]:
    trials = {v.name: [r for r in search.trials_of(v.name) if r.observed] for v in search.variants}
    if not any(trials.values()):
        return ("No trial has ended without failing: there is nothing to compare.",)
    sentences = []
    for phase, called in (("race", "the race"), ("refine", "the refinement")):
        counts = {name: sum(r.phase == phase for r in some) for name, some in trials.items()}
        if any(counts.values()):
            said = ", ".join(f"{name} {number}" for name, number in counts.items() if number)
            sentences.append(f"Trainings of {called} that ended without failing: {said}.")
    if search.race.rounds:
        sentences.append(
            "In each round, the variants that were left had the same number of settings, drawn alike, and the same "
            "seeds. A training ends early only where it can no longer change a round."
        )
    may_spend = sorted({record.history[-1].budget for record in search.trainings() if record.history})
    most = f"{' or '.join(map(str, may_spend))} gradient evaluations"
    sentences.append(
        f"{'Each training' if len(may_spend) == 1 else 'The budgets are not equal: a training'} could spend {most}."
    )
    runs = [run for run in search.records.values() if run.phase == "confirm" and run.status == "finished"]
    most_spent = max((run.gradient_evaluations for run in runs), default=0)
    if short := [f"{run.name} {run.gradient_evaluations}" for run in runs if run.gradient_evaluations < most_spent]:
        sentences.append(
            f"Confirmed runs that came to their end spent {most_spent} gradient evaluations, except {', '.join(short)}."
        )
    elif runs:
        sentences.append(
            f"All {len(runs)} confirmed runs that came to their end spent {most_spent} gradient evaluations."
        )
    return tuple(sentences)


def provenance(search: Search) -> Section:
    """Workload, data, seeds, versions, hardware and time of the search, and the command that repeats it."""
    spec, records, programs = search.spec, list(search.records.values()), search.processes
    workload = spec.training.workload
    rows = [
        (
            "workload",
            f"{workload.data}, {workload.model}, {spec.training.epochs} epochs of batches of {workload.batch_size}",
        ),
        ("data", "; ".join(dict.fromkeys([search.splits, *(r.test.data for r in records if r.test)])).strip("; ")),
        *([("score", f"{search.score}, which files and MLflow call accuracy")] if search.score != ACCURACY else []),
        ("targets", _targets(search)),
        *([("cost", "seconds of training, by timings of each variant")] if spec.cost == "seconds" else []),
        *([("seeds of timings", _seeds(search.timings()))] if search.timings() else []),
        *([("seeds of pilots", _seeds(search.pilots()))] if search.pilots() else []),
        ("seeds of trials", _seeds([r for r in records if r.is_trial])),
        ("seeds of confirmed runs", _seeds([r for r in records if r.phase == "confirm"])),
        *(("versions", ", ".join(f"{k} {v}" for k, v in versions)) for versions in _versions(search)),
        ("hardware", "; ".join(dict.fromkeys(f"{p.hardware}, {p.slots} at a time" for p in programs))),
        ("programs", str(len(programs))),
        ("wall time", str(timedelta(seconds=round(wall_seconds(search))))),
        ("gradient evaluations", str(sum(record.gradient_evaluations for record in records))),
        ("seconds of training", f"{sum(record.history[-1].seconds for record in records if record.history):.1f}"),
        ("command", command(spec)),
    ]
    note = (
        "A slot of a round has the same seed in every variant, and so has the k-th confirmed run. Equal seeds mean "
        "equal initial weights and equal batches."
    )
    table = Table("provenance", "How it was made", ("what", "how"), tuple((k, v or "not known") for k, v in rows), note)
    return Section("Provenance", tables=(table,))


def _targets(search: Search) -> str:
    shown = ", ".join(f"{target_label(target)}%" for target in search.spec.training.targets)
    if not shown or search.spec.targets != "auto":
        return shown
    return (
        f"{shown}, by the default point of {search.baseline}: what it reaches at a third and four fifths of its budget"
    )


def _seeds(records: list[TrialRecord]) -> str:
    seeds = sorted({record.spec.seed for record in records})
    return f"{seeds[0]} to {seeds[-1]} ({len(seeds)})" if seeds else "none"


def _versions(search: Search) -> list[tuple[tuple[str, str], ...]]:
    return list(dict.fromkeys(tuple(program.versions.items()) for program in search.processes))


def wall_seconds(search: Search) -> float:
    """Seconds that processes worked on the search; one that was killed or still runs counts up to its last epoch."""
    epochs = [metrics.finished_at for record in search.records.values() for metrics in record.history]
    total = 0.0
    for program, after in itertools.zip_longest(search.processes, search.processes[1:]):
        until = after.started_at if after else math.inf
        seen = [at for at in epochs if program.started_at <= at < until]
        total += (program.ended_at or max(seen, default=program.started_at)) - program.started_at
    return total


def command(spec: SearchSpec) -> str:
    """The command that makes the same search again, under a new name."""
    words = ["python", "-m", "tuner.search"]
    defaults = SearchSpec().flags()
    for name, value in spec.flags().items():
        if name in NOT_REPEATED or value is None or value == defaults[name]:
            continue
        if isinstance(value, bool):
            words.append(flag(name) if value else flag(f"no_{name}"))
        else:
            words += [flag(name), *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    return shlex.join(words)


def limits(search: Search) -> Section:
    """What this search does not show: what failed, seeds that are missing, its resolution and its one workload."""
    spec, goal = search.spec, f"{target_label(search.spec.training.targets[-1])}%"
    workload = spec.training.workload
    sentences = []
    for variant in search.variants:
        name, trials = variant.name, search.trials_of(variant.name)
        if failed := sum(record.status == "failed" for record in trials):
            sentences.append(f"{name}: {failed} of {len(trials)} trials failed.")
        for point in POINTS if spec.confirm_seeds and name in search.refined else ():
            runs = [run for run in search.confirmed(name, point).values() if run.ended and run.status != "failed"]
            if point == "best" and search.best(name) is None:
                sentences.append(f"{name}: no trial finished, so there are no best settings to confirm.")
            elif len(runs) < spec.num_seeds(point):
                settings = "best settings" if point == "best" else "default point"
                sentences.append(f"{name}: {len(runs)} of {spec.num_seeds(point)} fresh seeds of the {settings} ended.")
    if any(record.status == "failed" and record.phase == "race" for record in search.records.values()):
        sentences.append("A trial of the race that fails is made again; a second failure counts as a miss.")
    sentences += _of_seeds(search)
    confirmed = [run for variant in search.variants for run in search.confirmed(variant.name).values() if run.ended]
    runs = confirmed or [record for record in search.trainings() if record.ended]
    costs = [cost(search, run, spec.training.targets[-1], "gradient_evaluations") for run in runs]
    if runs and not any(map(math.isfinite, costs)):
        sentences.append(
            f"No {'confirmed run' if confirmed else 'trial'} reached {goal}: a lower target could tell more."
        )
    elif len(search.variants) > 1 and len(confirmed) > 1 and len(set(costs)) == 1:
        sentences.append(f"All confirmed runs reached {goal} at the same time: a higher target could tell them apart.")
    first = next((r.history[0] for r in search.trainings() if r.history), None)
    if first:
        step = first.budget // spec.training.epochs
        sentences.append(
            f"There is one evaluation per epoch of {step} gradient evaluations. Times between two of them are "
            "interpolated on a straight line."
        )
    if search.race.rounds:
        sentences.append(
            f"The race compares variants that may try {random_settings(search)} each in their own ranges. With "
            "more tuning, or in other ranges, the order may differ."
        )
    if spec.cost == "seconds":
        sentences.append(
            "Seconds per gradient evaluation were measured once, alone, on one device. On other devices, or beside "
            "other work, the order may differ. No error rate includes how exact they are."
        )
    sentences.append(
        f"A miss means that the target was not reached within {spec.training.epochs} epochs. Longer trainings were not "
        "tested."
    )
    sentences.append(
        f"The search covers one workload ({workload.data}, {workload.model}). It shows nothing about other workloads."
    )
    return Section("Limitations", tuple(sentences))


def _of_seeds(search: Search) -> list[str]:
    if not search.spec.confirm_seeds:
        return [
            "Nothing was confirmed (--confirm-seeds 0), so no settings can be compared. Each variant's best trial was "
            "chosen for its result, so it looks better than it is."
        ]
    return []
