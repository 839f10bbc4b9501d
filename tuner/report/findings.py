"""Further findings: divergence, edges of the spaces, steadiness of the trainings, importance of the settings."""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import TrialState

from search_spaces import Variant
from tuner.core.errors import InvalidInput
from tuner.core.metrics import max_loss_jump, tail_std
from tuner.core.serialization import flatten
from tuner.core.variants import override_ranges, shown
from tuner.report.comparison import ERROR
from tuner.report.document import Section, Table
from tuner.report.intervals import holm, share_interval
from tuner.study.objectives import OBJECTIVES
from tuner.study.results import Search
from tuner.study.trial_record import TrialRecord

EDGE = 0.05
"""Share of a range, at either end, in which a best value is reported as lying at an edge."""
WIDENINGS = (1.0, 0.5, 0.25, 0.125)
"""Widenings to try, in decades or in halves of a linear range; the first that the setting allows is advised."""
FEWEST = 11
"""Fewest ended trials for PED-ANOVA: from here on the best tenth, which it uses, is more than one trial."""
NUM_SHUFFLES = 19
"""Shuffles of the objective; by chance alone an importance exceeds those of all 19 shuffles once in 20."""


def divergence(search: Search) -> Section:
    """How often trainings diverge in each variant's space, and at which settings."""
    sentences, rows, calm = [], [], []
    for variant in search.variants:
        trials = [record for record in search.trials_of(variant.name) if record.ended and record.status != "failed"]
        random, others = ([r for r in trials if (r.phase == "race") == wanted] for wanted in (True, False))
        fallen = [sum(r.status == "diverged" for r in some) for some in (random, others)]
        share = share_interval(fallen[0], len(random))
        rate = f"{share.estimate:.0%} [{share.low:.0%}, {share.high:.0%}] ({share.level:.0%})" if random else "-"
        counts = [f"{count} of {len(some)}" for count, some in zip(fallen, (random, others), strict=True)]
        lrs = [[r.spec.optimizer.lr.peak for r in trials if (r.status == "diverged") == fell] for fell in (True, False)]
        ranges = [f"{min(some):.3g} to {max(some):.3g}" if some else "-" for some in lrs]
        rows.append((variant.name, counts[0], rate, counts[1], *ranges))
        if any(fallen):
            sentences.append(f"{variant.name}: {_by_lr(*lrs)}{_by_setting(variant, random)}.")
        elif trials:
            calm.append(variant.name)
    if calm:
        sentences.append(f"No trial of {', '.join(calm)} diverged.")
    columns = ("variant", "random trials", "rate", "other trials", "lr.peak where diverged", "lr.peak elsewhere")
    note = (
        "Counts are of trials that ended without failing. A trial that was stopped early had not diverged by then. "
        "The random trials are those of the race. They cover the space, so their share is the rate of divergence over "
        "the space, as far as they were watched. Its interval is exact for independent draws. The other trials give no "
        "rate, because earlier results decided where they lie."
    )
    table = Table("divergence", "Divergence over the space", columns, tuple(rows), note)
    return Section("Divergence", tuple(sentences) or ("No trial has ended.",), tables=(table,))


def _by_lr(fallen: Sequence[float], steady: Sequence[float]) -> str:
    if not steady:
        return f"all {len(fallen)} trials diverged, at lr.peak {min(fallen):.3g} to {max(fallen):.3g}"
    num_above, num_below = sum(lr > max(steady) for lr in fallen), sum(lr < min(fallen) for lr in steady)
    num_between = len(fallen) - num_above
    parts = (
        (num_above, num_above, f"above lr.peak {max(steady):.3g}"),
        (0, num_below, f"below lr.peak {min(fallen):.3g}"),
        (num_between, num_between + len(steady) - num_below, f"from {min(fallen):.3g} to {max(steady):.3g}"),
    )
    return ", ".join(f"{count} of {of} trials {where} diverged" for count, of, where in parts if of)


def _by_setting(variant: Variant, random: Sequence[TrialRecord]) -> str:
    """The settings that are shown to differ between random trials that diverged and the others."""
    from scipy.stats import mannwhitneyu  # slow to import

    tests = {}
    for name in _numbers(variant):
        values: tuple[list[float], list[float]] = ([], [])
        for record in random:
            settings: dict[str, Any] = flatten(record.spec.optimizer)
            if variant.active(name, settings):
                values[record.status == "diverged"].append(settings[name])
        steady, fallen = values
        if steady and fallen:
            test = mannwhitneyu(fallen, steady)
            larger = test.statistic > len(fallen) * len(steady) / 2
            tests[name] = float(test.pvalue), "larger" if larger else "smaller"
    adjusted = zip(tests, holm([p_value for p_value, _ in tests.values()]), strict=True)
    found = [f"{name} is {tests[name][1]} (p {p_value:.1g})" for name, p_value in adjusted if p_value <= ERROR]
    return f". In random trials that diverged, {', '.join(found)} than in the others" if found else ""


def _numbers(variant: Variant) -> dict[str, FloatDistribution | IntDistribution]:
    numeric = (FloatDistribution, IntDistribution)
    return {name: d for name, d in variant.searched.items() if isinstance(d, numeric) and not d.single()}


def stability(search: Search) -> Section:
    """How steadily each variant trained: tail deviation, worst score of the tail, largest rise of the loss."""
    rows, unconfirmed = [], []
    for variant in search.variants:
        runs = [run for run in search.confirmed(variant.name).values() if run.observed]
        if not runs:
            unconfirmed.append(variant.name)
            runs = [record for record in search.trials_of(variant.name) if record.status == "finished"]
        steady = [record.history for record in runs if record.status == "finished"]
        tails = [[m.validation_accuracy for m in history[-max(2, math.ceil(len(history) / 5)) :]] for history in steady]
        measures = [tail_std(history) for history in steady], [min(tail) for tail in tails], map(max_loss_jump, steady)
        cells = [f"{statistics.median(x):.3g} [{min(x):.3g}, {max(x):.3g}]" if x else "-" for x in map(list, measures)]
        rows.append((variant.name, str(len(runs)), str(len(runs) - len(steady)), *cells))
    sentences = ["The table is over confirmed runs of the best settings. Runs that diverged are counted, not measured."]
    if unconfirmed:
        sentences.append(f"Variants without confirmed runs show their trials that finished: {', '.join(unconfirmed)}.")
    columns = ("variant", "runs", "diverged", "tail deviation", "worst of the tail", "largest loss jump")
    note = (
        "Each cell is the median over the runs [smallest, largest]. The tail is the last fifth of the epochs, at least "
        f"two epochs. The deviation and the worst value are of the validation {search.score} in the tail. The jump is "
        "the largest rise of the training loss from one epoch to the next."
    )
    table = Table("stability", "Steadiness", columns, tuple(rows), note)
    return Section("Stability", tuple(sentences), tables=(table,))


def edges(search: Search) -> Section:
    """Warnings about best values at an edge of their range, with the flags that widen the range."""
    rows, num_looked_at = [], 0
    for variant in search.variants:
        best = search.best(variant.name)
        settings: dict[str, Any] = flatten(best.spec.optimizer) if best else {}
        searched = {name: d for name, d in _numbers(variant).items() if best and variant.active(name, settings)}
        num_looked_at += len(searched)
        for name, distribution in searched.items():
            value = float(settings[name])
            place = _place(distribution, value)
            if not EDGE < place < 1 - EDGE:
                end = "lower" if place <= EDGE else "upper"
                advice = _widening(search, variant, name, distribution, end == "lower")
                rows.append((variant.name, name, f"{value:.3g}", shown(distribution), end, advice))
    if not num_looked_at:
        return Section("Edges of the spaces", ("No finished trial has a numeric setting that was searched.",))
    said = f"The best trial lies within 5% of an end of the range in {len(rows)} of {num_looked_at} searched numbers"
    named = f" ({', '.join(f'{row[0]}: {row[1]}' for row in rows)}). Better values may lie beyond" if rows else ""
    chance = "By chance, a setting that does not matter lies there one time in ten."
    columns = ("variant", "setting", "best", "range", "end", "flag that widens it")
    note = "A logarithmic range is measured on its logarithmic scale. Integers and steps count only at the end itself."
    table = Table("edges", "Best values at an edge", columns, tuple(rows), note)
    return Section("Edges of the spaces", (f"{said}{named}.", chance), tables=(table,) if rows else ())


def _place(distribution: FloatDistribution | IntDistribution, value: float) -> float:
    """Position of a value in its range, from 0 (low end) to 1 (high end)."""
    low, high = float(distribution.low), float(distribution.high)
    if isinstance(distribution, IntDistribution) or distribution.step is not None:
        return 0.0 if value <= low else 1.0 if value >= high else 0.5
    if distribution.log:
        low, high, value = math.log(low), math.log(high), math.log(value)
    return (value - low) / (high - low)


def _widening(
    search: Search, variant: Variant, name: str, distribution: FloatDistribution | IntDistribution, lower: bool
) -> str:
    """The flag that widens a range at one end, or the reason why there is none."""
    low, high = distribution.low, distribution.high
    reason = ""
    for part in WIDENINGS:
        reach = part * (high - low) / 2
        outer = (low / 10**part, high * 10**part) if distribution.log else (low - reach, high + reach)
        ends = (outer[0], high) if lower else (low, outer[1])
        if isinstance(distribution, IntDistribution):
            ends = math.floor(ends[0]), math.ceil(ends[1])
        # The flag names the scale, because an earlier flag may have changed it.
        override = f"{variant.name}:{name}={ends[0]:.6g}:{ends[1]:.6g}:{'log' if distribution.log else 'linear'}"
        try:
            override_ranges(search.variants, override)
            return f"--space {override}"
        except InvalidInput as error:
            reason = str(error).removeprefix(f"variant {variant.name}: ")
    return f"none, the setting ends there ({reason})"


def importances(search: Search) -> dict[str, dict[str, float]]:
    """Variant -> setting -> its importance (PED-ANOVA) as a share of all, the largest first.

    A variant with fewer than :data:`FEWEST` ended trials, or without a difference in the objective, is left out.
    """
    found = {}
    for variant in search.variants:
        values = _values(search, variant.name)
        raw = _ped_anova(search, variant.name, values) if len(values) >= FEWEST else {}
        if total := sum(raw.values()):
            found[variant.name] = {k: v / total for k, v in sorted(raw.items(), key=lambda item: (-item[1], item[0]))}
    return found


def importance(search: Search) -> Section:
    """Which settings mattered for being among the best tenth of a variant's trials, and which did beyond chance."""
    rows, clear = [], []
    for name, shares in importances(search).items():
        important = _more_than_chance(search, name)
        clear += [f"{name}: {', '.join(important)}"] if important else []
        rows += [(name, k, f"{share:.0%}", "yes" if k in important else "no") for k, share in shares.items()]
    absent = [variant.name for variant in search.variants if variant.name not in {row[0] for row in rows}]
    sentences = [f"Settings that matter more than chance: {'; '.join(clear) or 'none'}."] if rows else []
    if absent:
        sentences.append(
            f"The importance is not known for {', '.join(absent)}: it needs {FEWEST} trials per variant that finished "
            "or diverged, with differences in the objective."
        )
    columns = ("variant", "setting", "importance", "more than chance")
    note = (
        "The importance is by PED-ANOVA (arXiv 2304.10255, 2601.20800): how far the settings of the best tenth of the "
        "trials differ from those of all trials. Trials that were stopped early, and repeats, are not used. More than "
        f"chance means an importance above those of all settings in each of {NUM_SHUFFLES} shuffles of the objective. "
        "Chance alone does that for one variant in 20."
    )
    table = Table("importance", "Importance of the settings", columns, tuple(rows), note)
    return Section("Importance of the settings", tuple(sentences), tables=(table,) if rows else ())


def _more_than_chance(search: Search, variant: str) -> list[str]:
    values, generator = _values(search, variant), np.random.default_rng(0)
    chance = 0.0
    for _ in range(NUM_SHUFFLES):
        shuffled = dict(zip(values, generator.permutation(list(values.values())), strict=True))
        chance = max(chance, *_ped_anova(search, variant, shuffled).values())
    return [setting for setting, raw in _ped_anova(search, variant, values).items() if raw > chance]


def _values(search: Search, variant: str) -> dict[int, float]:
    """Trial number -> its first objective, with the sign for which smaller is better; none for a repeat."""
    if variant not in search.studies:
        return {}
    sign = 1.0 if OBJECTIVES[search.spec.objective][0].direction == "minimize" else -1.0
    trials = search.studies[variant].get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return {trial.number: sign * trial.values[0] for trial in trials if "repeats" not in trial.user_attrs}


def _ped_anova(search: Search, variant: str, values: dict[int, float]) -> dict[str, float]:
    with warnings.catch_warnings(action="ignore"):  # about minimizing, and about few trials
        return optuna.importance.get_param_importances(
            search.studies[variant],
            target=lambda trial: values.get(trial.number, math.inf),  # a trial that ended in the meantime is left out
            normalize=False,
        )
