"""Whether the settings that a search chooses are worse than the default point, in searches whose truth is known.

A variant's true time with some settings follows from the formula of benchmarks.simulated_search without noise.  So
settings are compared by their truth, and not by their luck.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.simulated_search import Truth, curve, halvings, simulate
from search_spaces import SPACES
from tuner.core.search_spec import SearchSpec
from tuner.core.serialization import with_settings
from tuner.core.trial_spec import OptimizerSpec
from tuner.core.variants import from_unit
from tuner.study.objectives import race_time
from tuner.study.rounds import quantile

VARIANTS = ("sgdm", "adamw")
NOISE, OWN = 0.27, 0.45
"""As measured on digits: doublings between seeds, and the share of the variance that equal seeds do not explain."""
FACTORS = {"at the best": 1.0, "near the best": 1.2, "a factor of 2 off": 2.0, "a factor of 5 off": 5.0}
"""Best learning rate over that of the default point."""
LANDSCAPES: dict[str, Mapping[str, Any]] = {
    "broad": {"width": 1.0},
    "narrow": {"width": 0.5},
    "three settings": {"width": 1.0, "others": (("momentum.value", 0.9, 0.08), ("lr.warmup", 0.05, 0.3))},
}
"""Name -> which settings matter, and how much.  The first spreads times as settings do on digits, misses apart."""
TRIALS, OLD_TRIALS = 16, 8
"""Trainings of a variant in the race, at most; and the trials of a variant in the plan before there were races."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """Settings that were chosen for a variant."""

    ratio: float
    """Their true time over that of the default point."""
    cost: float
    """What finding and choosing them cost after the race, in full trainings."""


def truth_of(variant: str, factor: float, landscape: Mapping[str, Any]) -> Truth:
    """A variant whose best learning rate is ``factor`` times that of its default point."""
    default = with_settings(OptimizerSpec(), SPACES[variant].default_settings()).lr.peak
    return Truth(lr_best=default * factor, noise=NOISE, own=OWN, stream=VARIANTS.index(variant), **landscape)


def true_ratio(optimizer: OptimizerSpec, variant: str, truth: Truth) -> float:
    """True time with these settings over that with the default point."""
    default = with_settings(OptimizerSpec(), SPACES[variant].default_settings())
    return float(2 ** (halvings(optimizer, truth) - halvings(default, truth)))


def of_search(seed: int, factor: float, landscape: Mapping[str, Any], trials: int = TRIALS) -> list[Chosen]:
    """What a search with a race chooses for each of its variants."""
    spec = SearchSpec(variants=VARIANTS, trials=trials, seed=seed, confirm="all", confirm_seeds=0)
    truths = {name: truth_of(name, factor, landscape) for name in VARIANTS}
    search = simulate(spec, truths)
    found = []
    for name in VARIANTS:
        best = search.best(name)
        refined = [r.gradient_evaluations / r.history[-1].budget for r in search.trials_of(name) if r.phase == "refine"]
        if best is not None:
            found.append(Chosen(true_ratio(best.spec.optimizer, name, truths[name]), sum(refined)))
    return found


def of_luckiest(seed: int, factor: float, landscape: Mapping[str, Any]) -> list[Chosen]:
    """What the plan before there were races chose: the best of a few settings with one seed each.

    The settings are random ones, and the default point is no candidate.
    """
    spec = SearchSpec(variants=VARIANTS, seed=seed)
    found = []
    for name in VARIANTS:
        truth, variant = truth_of(name, factor, landscape), SPACES[name]
        trials = []
        for place in range(OLD_TRIALS):
            drawn = {key: from_unit(law, quantile(key, seed, place)) for key, law in variant.searched.items()}
            trial = spec.trial_spec(with_settings(OptimizerSpec(), {**variant.fixed, **drawn}), place)
            time = race_time("time-to-target", "finished", curve(trial, truth), trial.targets)
            trials.append((time, true_ratio(trial.optimizer, name, truth)))
        time, ratio = min(trials)
        if math.isfinite(time):
            found.append(Chosen(ratio, math.nan))
    return found


def shares(found: Sequence[Chosen]) -> dict[str, float]:
    """Shares of the choices that are worse than the default point, the mean ratio of times, and the mean cost."""
    ratios = [one.ratio for one in found]
    return {
        "worse": float(np.mean([ratio > 1 for ratio in ratios])),
        "worse by a tenth": float(np.mean([ratio > 1.1 for ratio in ratios])),
        "ratio": float(np.exp(np.mean(np.log(ratios)))),
        "ratio, 95%": float(np.quantile(ratios, 0.95)),
        "cost": float(np.mean([one.cost for one in found])),
    }


def tuned(num: int) -> dict[str, dict[str, float]]:
    """Chosen settings against the default point: by a search, and by the luckiest of eight random trials."""
    found = {}
    for (place, landscape), (name, factor) in itertools.product(LANDSCAPES.items(), FACTORS.items()):
        for way, choose in (("", of_search), (f", luckiest of {OLD_TRIALS}", of_luckiest)):
            made = [one for seed in range(num) for one in choose(seed, factor, landscape)]
            found[f"{place}, default {name}{way}"] = shares(made)
    return found
