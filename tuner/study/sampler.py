"""Where trials are placed: a random arm that covers the space evenly, enqueued points, then a model-based arm."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, TPESampler
from optuna.search_space import IntersectionSearchSpace
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from search_spaces import Variant
from tuner.core.variants import from_unit

Arm: TypeAlias = Literal["random", "default", "model"]


def num_random(num_trials: int) -> int:
    """Size of the random arm: the larger half of the trials."""
    return (num_trials + 1) // 2


def num_default(variant: Variant, num_trials: int) -> int:
    """How many enqueued points are tried; they replace at most half of the model's trials."""
    return min(len(variant.enqueued), (num_trials - num_random(num_trials)) // 2)


class SearchSampler(BaseSampler):
    """Three arms in one sampler; :class:`tuner.study.optuna_study.VariantStudy` chooses the arm of the next trial.

    Random arm: points of a scrambled Sobol sequence if the space has no conditions, else independent uniform draws
    (a low-discrepancy sequence has no meaning if the dimensions vary).
    Default arm: the variant's enqueued points, in order.
    Model arm: multivariate TPE with a constant liar.  It learns from all arms and has no start-up phase.
    """

    def __init__(self, variant: Variant, seed: int) -> None:
        self.variant = variant
        self.seed = seed
        self._names = list(variant.searched)
        self._enqueued = list(variant.enqueued.values())
        # TPE makes its own anew for each draw, and goes through all trials again.
        self._space = IntersectionSearchSpace(include_pruned=True)
        self.choose("random", 0)

    def choose(self, arm: Arm, index: int) -> None:
        """Makes the next trial the ``index``-th (from 0) of this arm."""
        self.arm: Arm = arm
        self.index = index
        # Seeded by position, so that a resumed search draws what an uninterrupted one would, given the same results.
        with warnings.catch_warnings():
            # Optuna calls `group`, which conditional spaces need, experimental.
            warnings.simplefilter("ignore", ExperimentalWarning)
            self._tpe = TPESampler(
                multivariate=True,
                group=bool(self.variant.when),
                constant_liar=True,
                n_startup_trials=0,
                seed=(self.seed + 7919 * index) % 2**32,
            )

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        if self.arm != "model":
            return {}
        if self.variant.when:
            return self._tpe.infer_relative_search_space(study, trial)
        found = self._space.calculate(study)
        return {name: distribution for name, distribution in found.items() if not distribution.single()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._tpe.sample_relative(study, trial, search_space) if self.arm == "model" else {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        if self.arm == "model":
            return self._tpe.sample_independent(study, trial, param_name, param_distribution)
        if self.arm == "default":
            return self._enqueued[self.index][param_name]
        return from_unit(param_distribution, float(self._random_point()[self._names.index(param_name)]))

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self._tpe.after_trial(study, trial, state, values)

    def _random_point(self) -> np.ndarray:
        if self.variant.when:
            return np.random.default_rng((self.seed, self.index)).random(len(self._names))
        return sobol_point(len(self._names), self.index, self.seed)


@functools.lru_cache(maxsize=1)  # a trial asks for it once per setting
def sobol_point(dimension: int, index: int, seed: int) -> np.ndarray:
    """Point ``index`` (from 0) of a scrambled Sobol sequence in the unit cube."""
    from scipy.stats import qmc  # the import takes most of a second

    sequence = qmc.Sobol(dimension, scramble=True, rng=np.random.default_rng(seed))
    if index:
        sequence.fast_forward(index)
    return np.asarray(sequence.random(1)[0])
