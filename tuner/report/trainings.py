"""What the trainings show beside their speed: how often they diverge, and where; how steadily they go."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from search_spaces import Variant
from tuner.convergence import max_loss_jump, tail_std
from tuner.report.comparison import ERROR
from tuner.report.document import Section, Table
from tuner.report.intervals import holm, share_interval
from tuner.report.spaces import numbers
from tuner.results import Record, Search
from tuner.settings import flatten


def divergence(search: Search) -> Section:
    """How often trainings diverge all over a variant's space, and at which settings."""
    sentences, rows, calm = [], [], []
    for variant in search.variants:
        trials = [record for record in search.trials_of(variant.name) if record.ended and record.status != "failed"]
        arms = [[r for r in trials if (r.arm == "random") == wanted] for wanted in (True, False)]
        fallen = [sum(map(_diverged, arm)) for arm in arms]
        share = share_interval(fallen[0], len(arms[0]))
        rate = f"{share.estimate:.0%} [{share.low:.0%}, {share.high:.0%}] ({share.level:.0%})" if arms[0] else "-"
        counts = [f"{count} of {len(arm)}" for count, arm in zip(fallen, arms, strict=True)]
        lrs = [[_lr(r) for r in trials if _diverged(r) == wanted] for wanted in (True, False)]
        ranges = [f"{min(some):.3g} to {max(some):.3g}" if some else "-" for some in lrs]
        rows.append((variant.name, counts[0], rate, counts[1], *ranges))
        if any(fallen):
            sentences.append(f"{variant.name}: {_by_lr(*lrs)}{_by_setting(variant, arms[0])}.")
        elif trials:
            calm.append(variant.name)
    if calm:
        sentences.append(f"No trial of {', '.join(calm)} diverged.")
    columns = (
        "variant",
        "random trials",
        "rate over the space",
        "other trials",
        "lr.peak, diverged",
        "lr.peak, others",
    )
    note = (
        "Trials that diverged, of those that ended without failing; one that was stopped had not diverged by then. The "
        "random arm covers the space: its share is the rate over it, in an interval that is exact for independent "
        "draws. Where the other trials lie was chosen by what came before."
    )
    table = Table("divergence", "Divergence over the space", columns, tuple(rows), note)
    return Section("Divergence", tuple(sentences) or ("No trial has ended.",), tables=(table,))


def _diverged(record: Record) -> bool:
    return record.status == "diverged"


def _lr(record: Record) -> float:
    return record.spec.optimizer.lr.peak


def _by_lr(fallen: Sequence[float], steady: Sequence[float]) -> str:
    if not steady:
        return f"all {len(fallen)} trials diverged, at lr.peak {min(fallen):.3g} to {max(fallen):.3g}"
    num_above, num_below = sum(lr > max(steady) for lr in fallen), sum(lr < min(fallen) for lr in steady)
    num_between, total = len(fallen) - num_above, len(fallen) + len(steady) - num_above - num_below
    said = [f"above lr.peak {max(steady):.3g} {num_above} of {num_above} trials diverged"] if num_above else []
    said += [f"below lr.peak {min(fallen):.3g} 0 of {num_below} trials diverged"] if num_below else []
    ends = f"from lr.peak {min(fallen):.3g} to {max(steady):.3g}"
    return ", ".join([*said, *([f"{ends} {num_between} of {total} trials diverged"] if total else [])])


def _by_setting(variant: Variant, random: Sequence[Record]) -> str:
    """The settings that are shown to differ between the trials that diverged and the others."""
    from scipy.stats import mannwhitneyu  # slow to import

    tests = {}
    for name in numbers(variant):
        values: tuple[list[float], list[float]] = ([], [])
        for record in random:
            settings: dict[str, Any] = flatten(record.spec.optimizer)
            if variant.active(name, settings):
                values[_diverged(record)].append(settings[name])
        steady, fallen = values
        if steady and fallen:
            test = mannwhitneyu(fallen, steady)
            larger = test.statistic > len(fallen) * len(steady) / 2
            tests[name] = float(test.pvalue), "larger" if larger else "smaller"
    adjusted = zip(tests, holm([p_value for p_value, _ in tests.values()]), strict=True)
    found = [f"{name} is {tests[name][1]} (p {p_value:.1g})" for name, p_value in adjusted if p_value <= ERROR]
    return f"; in random trials that diverged {', '.join(found)} than in the others" if found else ""


def stability(search: Search) -> Section:
    """How steadily each variant trained."""
    rows, unconfirmed = [], []
    for variant in search.variants:
        runs = [run for run in search.confirmed(variant.name).values() if run.status in ("finished", "diverged")]
        if not runs:
            unconfirmed.append(variant.name)
            runs = [record for record in search.trials_of(variant.name) if record.status == "finished"]
        steady = [record.history for record in runs if record.status == "finished"]
        tails = [[m.validation_accuracy for m in history[-max(2, math.ceil(len(history) / 5)) :]] for history in steady]
        measures = [tail_std(history) for history in steady], [min(tail) for tail in tails], map(max_loss_jump, steady)
        shown = [f"{statistics.median(x):.3g} [{min(x):.3g}, {max(x):.3g}]" if x else "-" for x in map(list, measures)]
        rows.append((variant.name, str(len(runs)), str(len(runs) - len(steady)), *shown))
    sentences = ["Over the confirmed runs of the best settings; those that diverged are counted, and not measured."]
    if unconfirmed:
        sentences.append(
            f"Nothing is confirmed of {', '.join(unconfirmed)}: there it is over the trials that finished."
        )
    columns = ("variant", "runs", "diverged", "tail deviation", "worst of the tail", "largest loss jump")
    note = (
        "Median over the runs [smallest, largest]. The tail is the last fifth of the epochs, at least two; deviation "
        "and worst are of the validation accuracy there, the jump is a rise of the training loss from epoch to epoch."
    )
    return Section(
        "Stability", tuple(sentences), tables=(Table("stability", "Steadiness", columns, tuple(rows), note),)
    )
