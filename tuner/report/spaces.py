"""What a search says of its spaces: best values at an edge, and which settings matter."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import optuna
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import TrialState

from search_spaces import Variant
from tuner.errors import InvalidInput
from tuner.objectives import OBJECTIVES
from tuner.report.document import Section, Table
from tuner.results import Search
from tuner.settings import flatten
from tuner.variants import resolve_variants, shown

EDGE = 0.05
"""Part of a range, at either end, in which a best value is warned of."""
WIDENINGS = (1.0, 0.5, 0.25, 0.125)
"""Parts of a factor 10, or of half a linear range, the largest that the setting allows."""
FEWEST = 11
"""Ended trials from which the best tenth, at which PED-ANOVA looks, is more than one trial."""
NUM_SHUFFLES = 19
"""An importance above those of so many shuffles of the objective is chance once in 20."""


def numbers(variant: Variant) -> dict[str, FloatDistribution | IntDistribution]:
    """The searched settings that are numbers from a range."""
    kinds = (FloatDistribution, IntDistribution)
    return {name: d for name, d in variant.searched.items() if isinstance(d, kinds) and not d.single()}


def edges(search: Search) -> Section:
    """Warnings of best values at an edge of their range, with the flags that widen these."""
    rows, num_looked_at = [], 0
    for variant in search.variants:
        best = search.best(variant.name)
        settings: dict[str, Any] = flatten(best.spec.optimizer) if best else {}
        for name, distribution in numbers(variant).items():
            if best is None or not variant.active(name, settings):
                continue
            num_looked_at += 1
            value = float(settings[name])
            place = _place(distribution, value)
            if not EDGE < place < 1 - EDGE:
                end = "lower" if place <= EDGE else "upper"
                advice = _widening(search, variant, name, distribution, end == "lower")
                rows.append((variant.name, name, f"{value:.3g}", shown(distribution), end, advice))
    if not num_looked_at:
        return Section("Edges of the spaces", ("No variant has a finished trial with a number that was searched.",))
    said = f"The best trial lies within 5% of an end of its range in {len(rows)} of {num_looked_at} searched numbers"
    named = f" ({', '.join(f'{row[0]}: {row[1]}' for row in rows)}): a better value may lie beyond" if rows else ""
    chance = "A setting that does not matter lies there one time in ten."
    columns = ("variant", "setting", "best", "range", "end", "what widens it")
    note = "On a logarithmic scale where the range has one; of integers and steps, the end itself."
    table = Table("edges", "Best values at an edge", columns, tuple(rows), note)
    return Section("Edges of the spaces", (f"{said}{named}.", chance), tables=(table,) if rows else ())


def _place(distribution: FloatDistribution | IntDistribution, value: float) -> float:
    """Where a value lies in its range, from 0 to 1."""
    low, high = float(distribution.low), float(distribution.high)
    if isinstance(distribution, IntDistribution) or distribution.step is not None:
        return 0.0 if value <= low else 1.0 if value >= high else 0.5
    if distribution.log:
        low, high, value = math.log(low), math.log(high), math.log(value)
    return (value - low) / (high - low)


def _widening(
    search: Search, variant: Variant, name: str, distribution: FloatDistribution | IntDistribution, lower: bool
) -> str:
    """The flag that widens a range at one end, or why there is none."""
    low, high = distribution.low, distribution.high
    reason = ""
    for part in WIDENINGS:
        if distribution.log:
            ends = (low / 10**part, high) if lower else (low, high * 10**part)
        else:
            ends = (low - part * (high - low) / 2, high) if lower else (low, high + part * (high - low) / 2)
        if isinstance(distribution, IntDistribution):
            ends = math.floor(ends[0]), math.ceil(ends[1])
        # The scale is said, as an earlier flag may have changed it.
        override = f"{variant.name}:{name}={ends[0]:.6g}:{ends[1]:.6g}:{'log' if distribution.log else 'linear'}"
        try:
            resolve_variants(search.spec.variants, [*search.spec.space, override])
            return f"--space {override}"
        except InvalidInput as error:
            reason = str(error).removeprefix(f"variant {variant.name}: ")
    return f"nothing: the range ends where the setting does ({reason})"


def importances(search: Search) -> dict[str, dict[str, float]]:
    """Variant -> setting -> its share of the importance (PED-ANOVA), the largest first; not of too few trials."""
    return {name: {k: v / sum(raw.values()) for k, v in raw.items()} for name, raw in _importances(search).items()}


def importance(search: Search) -> Section:
    """Which settings mattered for being among the best tenth of a variant's trials, and which more than by chance."""
    raw = _importances(search)
    rows, shown = [], []
    for name, shares in importances(search).items():
        chance = _by_chance(search, name)
        clear = [setting for setting in shares if raw[name][setting] > chance]
        shown += [f"{name}: {', '.join(clear)}"] if clear else []
        rows += [(name, k, f"{share:.0%}", "yes" if k in clear else "no") for k, share in shares.items()]
    absent = [variant.name for variant in search.variants if variant.name not in raw]
    sentences = [f"More than chance: {'; '.join(shown) or 'no setting'}."] if raw else []
    if absent:
        sentences.append(
            f"Nothing can be said of {', '.join(absent)}: that takes {FEWEST} trials that ran to their end or diverged "
            "and differ in the objective."
        )
    columns = ("variant", "setting", "importance", "more than chance")
    note = (
        "PED-ANOVA (arXiv 2304.10255, conditional settings 2601.20800): how far the settings of the best tenth differ "
        "from all; trials that were stopped are not in it. More than chance: above every setting's in each of "
        f"{NUM_SHUFFLES} searches whose objectives were shuffled, which happens by chance to one variant in 20."
    )
    table = Table("importance", "Importance of the settings", columns, tuple(rows), note)
    return Section("Importance of the settings", tuple(sentences), tables=(table,) if rows else ())


def _importances(search: Search) -> dict[str, dict[str, float]]:
    found = {}
    for variant in search.variants:
        values = _values(search, variant.name)
        raw = _ped_anova(search.studies[variant.name], values) if len(values) >= FEWEST else {}
        if sum(raw.values()) > 0:
            found[variant.name] = dict(sorted(raw.items(), key=lambda item: (-item[1], item[0])))
    return found


def _values(search: Search, variant: str) -> dict[int, float]:
    # The first objective, smaller is better, as PED-ANOVA takes it.
    if variant not in search.studies:
        return {}
    sign = 1.0 if OBJECTIVES[search.spec.objective][0].direction == "minimize" else -1.0
    trials = search.studies[variant].get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return {trial.number: sign * trial.values[0] for trial in trials}


def _by_chance(search: Search, variant: str) -> float:
    values, generator = _values(search, variant), np.random.default_rng(0)
    shuffles = [
        dict(zip(values, generator.permutation(list(values.values())), strict=True)) for _ in range(NUM_SHUFFLES)
    ]
    return max(max(_ped_anova(search.studies[variant], shuffle).values()) for shuffle in shuffles)


def _ped_anova(study: optuna.Study, values: dict[int, float]) -> dict[str, float]:
    with warnings.catch_warnings(action="ignore"):  # that it minimizes, and that few trials are inaccurate
        return optuna.importance.get_param_importances(
            study, target=lambda trial: values[trial.number], normalize=False
        )
