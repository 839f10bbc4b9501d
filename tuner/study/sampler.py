"""Where trials are placed: at given settings, or where one of Optuna's samplers puts them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna
import optuna.samplers
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler
from optuna.search_space import IntersectionSearchSpace
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from search_spaces import Variant
from tuner.core.search_spec import SamplerName

NUM_STARTUP = 4
"""Number of trials with a value before a model is used; until then, settings are random."""


class SearchSampler(BaseSampler):
    """Draws the next trial of a study; :class:`tuner.study.optuna_study.VariantStudy` says how."""

    def __init__(self, variant: Variant, seed: int, kind: SamplerName) -> None:
        self.variant = variant
        self.seed = seed
        self.kind = kind
        # TPE makes its own anew for each draw, and goes through all trials again.
        self._space = IntersectionSearchSpace(include_pruned=True)
        self.give({})

    def give(self, settings: Mapping[str, Any]) -> None:
        """Makes the next trial have these settings."""
        self._given: Mapping[str, Any] | None = settings

    def model(self, index: int, learned: Sequence[FrozenTrial] = ()) -> None:
        """Makes the sampler draw the next trial, the ``index``-th of the refinement, from 0.

        ``learned`` are trials that no sampler of this kind has drawn.  CMA-ES begins where they point to; the others
        read them in the study.
        """
        self._given = None
        # Seeded by position, so that a resumed search draws what an uninterrupted one would, given the same results.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            self._sampler = MAKERS[self.kind](
                (self.seed + 7919 * index) % 2**32, bool(self.variant.when), list(learned)
            )

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        if self._given is not None or _num_observed(study) < NUM_STARTUP:
            return {}
        if self.variant.when or self.kind != "tpe":
            return self._sampler.infer_relative_search_space(study, trial)
        found = self._space.calculate(study)
        return {name: distribution for name, distribution in found.items() if not distribution.single()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._sampler.sample_relative(study, trial, search_space) if search_space else {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        if self._given is not None:
            return self._given[param_name]
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        pass


def _num_observed(study: Study) -> int:
    return len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)))


def _numbers_alone(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trials with the numbers that all of them have: CMA-ES draws these, and takes no trial with others."""
    spaces = [
        {
            name
            for name, range_ in trial.distributions.items()
            if isinstance(range_, FloatDistribution | IntDistribution) and not range_.single()
        }
        for trial in trials
    ]
    names = set.intersection(*spaces) if spaces else set()
    return [
        optuna.trial.create_trial(
            params={name: trial.params[name] for name in sorted(names)},
            distributions={name: trial.distributions[name] for name in sorted(names)},
            values=trial.values,
        )
        for trial in trials
        if names
    ]


def _tpe(seed: int, conditional: bool, learned: list[FrozenTrial]) -> BaseSampler:
    # `group` is what conditional spaces need; trials that run count as bad ones.
    return optuna.samplers.TPESampler(
        multivariate=True, group=conditional, constant_liar=True, n_startup_trials=NUM_STARTUP, seed=seed
    )


MAKERS: Mapping[SamplerName, Callable[[int, bool, list[FrozenTrial]], BaseSampler]] = {
    "tpe": _tpe,
    "gp": lambda seed, conditional, learned: optuna.samplers.GPSampler(
        seed=seed, n_startup_trials=NUM_STARTUP, warn_independent_sampling=False
    ),
    "random": lambda seed, conditional, learned: optuna.samplers.RandomSampler(seed=seed),
    "cmaes": lambda seed, conditional, learned: optuna.samplers.CmaEsSampler(
        seed=seed,
        n_startup_trials=NUM_STARTUP,
        warn_independent_sampling=False,
        source_trials=_numbers_alone(learned) or None,
    ),
}
"""Name -> the sampler, by its seed, whether the space has conditions, and what it begins with."""
