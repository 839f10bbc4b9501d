"""Where trials are placed: quantiles, slots of the race, given points, and samplers that learn from all of them."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable
from typing import get_args

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import TPESampler
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from search_spaces import SPACES, Variant
from tuner.core.metrics import EpochMetrics
from tuner.core.search_spec import SamplerName, SearchSpec
from tuner.core.serialization import flatten
from tuner.core.variants import from_unit
from tuner.study.optuna_study import VariantStudy
from tuner.study.refinement import given_points
from tuner.study.sampler import NUM_STARTUP, SearchSampler

DISTRIBUTIONS: list[tuple[BaseDistribution, object, object]] = [
    (FloatDistribution(-1.5, 2.5), -1.5, 2.5),
    (FloatDistribution(1e-5, 1e-2, log=True), 1e-5, 1e-2),
    (FloatDistribution(0.1, 0.7, step=0.2), 0.1, 0.7),
    (FloatDistribution(0.0, 1.0, step=0.1), 0.0, 1.0),
    (FloatDistribution(0.3, 0.3), 0.3, 0.3),
    (IntDistribution(-3, 5), -3, 5),
    (IntDistribution(2, 14, step=4), 2, 14),
    (IntDistribution(1, 1000, log=True), 1, 1000),
    (IntDistribution(7, 7), 7, 7),
    (CategoricalDistribution(("a", "b", "c")), "a", "c"),
    (CategoricalDistribution((None, True, 3)), None, 3),
]


@pytest.mark.parametrize(("distribution", "low", "high"), DISTRIBUTIONS, ids=lambda value: str(value)[:60])
def test_quantiles_reach_from_one_end_to_the_other(distribution: BaseDistribution, low: object, high: object) -> None:
    assert from_unit(distribution, 0.0) == pytest.approx(low)
    assert from_unit(distribution, 1.0) == pytest.approx(high)
    assert from_unit(distribution, 1 - 2**-53) == pytest.approx(high)


@pytest.mark.parametrize(("distribution", "low", "high"), DISTRIBUTIONS, ids=lambda value: str(value)[:60])
def test_every_quantile_is_a_value_of_the_distribution(
    distribution: BaseDistribution, low: object, high: object
) -> None:
    values = [from_unit(distribution, float(u)) for u in np.linspace(0, 1, 501)]
    internal = [distribution.to_internal_repr(value) for value in values]
    assert all(map(distribution._contains, internal))
    assert internal == sorted(internal)
    if isinstance(distribution, IntDistribution):
        assert all(type(value) is int for value in values)


@pytest.mark.parametrize(
    "distribution",
    [
        FloatDistribution(0.1, 0.7, step=0.2),
        IntDistribution(-3, 5),
        IntDistribution(2, 14, step=4),
        CategoricalDistribution(("a", "b", "c")),
    ],
    ids=str,
)
def test_values_on_a_grid_are_equally_likely(distribution: BaseDistribution) -> None:
    counts = Counter(from_unit(distribution, (i + 0.5) / 7200) for i in range(7200))
    assert len(set(counts.values())) == 1


def test_integers_on_a_log_scale_are_as_likely_as_their_stretch_is_long() -> None:
    distribution, num = IntDistribution(1, 8, log=True), 100_000
    counts = Counter(from_unit(distribution, (i + 0.5) / num) for i in range(num))
    for value in range(1, 9):
        assert counts[value] / num == pytest.approx(math.log((value + 0.5) / (value - 0.5)) / math.log(17), abs=1e-4)


def test_log_and_linear_medians() -> None:
    assert from_unit(FloatDistribution(1e-4, 1.0, log=True), 0.5) == pytest.approx(1e-2)
    assert from_unit(FloatDistribution(2.0, 4.0), 0.5) == pytest.approx(3.0)


SamplerNames = get_args(SamplerName)
Search = Callable[..., tuple[VariantStudy, list[dict[str, object]]]]


@pytest.fixture
def search(epoch: Callable[..., EpochMetrics]) -> Search:
    """Runs a study whose accuracy a function of the settings gives: some slots of a race, and then a refinement.

    Returns it and the settings of its trials.
    """

    def run(
        variant: Variant,
        accuracy: Callable[[dict[str, object]], float],
        num_raced: int,
        num_tried: int,
        sampler: SamplerName = "tpe",
        seed: int = 0,
    ) -> tuple[VariantStudy, list[dict[str, object]]]:
        spec = SearchSpec.from_flags(objective="accuracy", targets=(0.9,), trials=200, sampler=sampler, seed=seed)
        study = VariantStudy(InMemoryStorage(), spec, variant, search="s")
        drawn: list[dict[str, object]] = []
        for number in range(num_raced + num_tried):
            if number < num_raced:
                study.ask_race(*divmod(number, spec.round_size))
            else:
                study.ask_refine(number - num_raced, num_tried)
            drawn.append(dict(flatten(study.settings(number))))
            study.tell(number, "finished", [epoch(1, accuracy(drawn[-1]))])
        return study, drawn

    return run


def distance(settings: dict[str, object]) -> float:
    """From an optimum in a corner, in units of the ranges."""
    lr, momentum = settings["lr.peak"], settings["momentum.value"]
    assert isinstance(lr, float) and isinstance(momentum, float)
    return math.hypot((math.log10(lr) + 2.7) / 3, (momentum - 0.8) / 0.9)


def flat(settings: dict[str, object]) -> float:
    return 0.5


def test_slots_of_the_race_listen_to_no_result_and_the_sampler_does(
    search: Search, toy: Callable[..., Variant]
) -> None:
    good, bad = (
        search(toy(), lambda settings, sign=sign: 0.5 + sign * distance(settings) / 10, 8, 4)[1] for sign in (-1, 1)
    )
    assert good[:9] == bad[:9], "the ninth is the default point"
    assert good[9:] != bad[9:]


def test_equal_spaces_of_other_names_have_equal_slots_and_other_draws(
    search: Search, toy: Callable[..., Variant]
) -> None:
    one, other = (search(toy(name), flat, 8, 4)[1] for name in ("one", "other"))
    assert one[:9] == other[:9]
    assert not {settings["lr.peak"] for settings in one[9:]} & {settings["lr.peak"] for settings in other[9:]}


@pytest.mark.parametrize(("sampler", "num_seeds", "num_tried"), [("tpe", 12, 13), ("cmaes", 6, 13), ("gp", 3, 4)])
@pytest.mark.usefixtures("one_thread")
def test_a_sampler_learns_from_the_race_with_its_first_draw(
    search: Search, toy: Callable[..., Variant], sampler: SamplerName, num_seeds: int, num_tried: int
) -> None:
    raced, first, drawn = [], [], []
    for seed in range(num_seeds):
        distances = [distance(s) for s in search(toy(), lambda s: 1 - distance(s), 16, num_tried, sampler, seed)[1]]
        raced += distances[:16]
        first.append(distances[17])
        drawn += distances[17:]
    if sampler != "cmaes":  # which begins in the middle of the space
        assert np.median(first) < 0.6 * np.median(raced), "a start-up phase would draw it as slots are drawn"
    assert np.median(drawn) < 0.75 * np.median(raced)


def test_the_random_sampler_learns_nothing(search: Search, toy: Callable[..., Variant]) -> None:
    drawn = [search(toy(), accuracy, 4, 8, "random")[1] for accuracy in (flat, lambda settings: 1 - distance(settings))]
    assert drawn[0] == drawn[1]
    assert len({settings["lr.peak"] for settings in drawn[0]}) == 12


@pytest.mark.parametrize("sampler", SamplerNames)
@pytest.mark.usefixtures("one_thread")
def test_a_program_that_resumes_draws_what_the_earlier_one_would_have_drawn(
    search: Search, toy: Callable[..., Variant], epoch: Callable[..., EpochMetrics], sampler: SamplerName
) -> None:
    expected = search(toy(), lambda settings: 1 - distance(settings), 8, 5, sampler)[1]
    storage = InMemoryStorage()
    spec = SearchSpec.from_flags(objective="accuracy", targets=(0.9,), trials=200, sampler=sampler)
    for number, settings in enumerate(expected):
        study = VariantStudy(storage, spec, toy(), search="s")  # a program for each trial
        asked = study.ask_race(*divmod(number, 4)) if number < 8 else study.ask_refine(number - 8, 5)
        assert dict(flatten(study.settings(asked))) == settings
        study.tell(number, "finished", [epoch(1, 1 - distance(settings))])


@pytest.mark.parametrize("sampler", SamplerNames)
def test_settings_are_drawn_where_nothing_has_finished(toy: Callable[..., Variant], sampler: SamplerName) -> None:
    study = VariantStudy(InMemoryStorage(), SearchSpec(sampler=sampler), toy(), search="s")
    drawn = [study.settings(study.ask_refine(index, 8)).lr.peak for index in range(8)]
    assert drawn[0] == 0.1 and len(set(drawn)) == 8
    assert all(1e-3 <= lr <= 1 for lr in drawn)


def test_the_model_knows_the_space_as_tpe_does_and_goes_over_each_trial_once(
    toy: Callable[..., Variant], monkeypatch: pytest.MonkeyPatch
) -> None:
    num_compared = 0
    equal = BaseDistribution.__eq__

    def compared(one: BaseDistribution, other: object) -> bool:
        nonlocal num_compared
        num_compared += 1
        return equal(one, other)

    monkeypatch.setattr(BaseDistribution, "__eq__", compared)
    sampler = SearchSampler(toy(), seed=0, kind="tpe")
    study = optuna.create_study(sampler=sampler)
    counts = []
    for index in range(40):
        sampler.model(index)
        before = num_compared
        trial = study.ask()
        value = trial.suggest_float("lr.peak", 1e-3, 1.0, log=True) + trial.suggest_float("momentum.value", 0, 0.9)
        counts.append(num_compared - before)
        trial.report(value, 1)
        study.tell(trial, *([None, TrialState.PRUNED] if index % 2 else [value]))
        if index >= NUM_STARTUP:
            found = sampler.infer_relative_search_space(study, study.trials[-1])
            asked = TPESampler(multivariate=True).infer_relative_search_space(study, study.trials[-1])
            assert list(found.items()) == list(asked.items())
    assert len(found) == 2
    assert max(counts[10:]) <= max(counts[:10])


@pytest.fixture
def parted(toy: Callable[..., Variant]) -> Callable[[int], Variant]:
    """Makes the toy variant with so many enqueued points, beside the optimum of `distance`."""

    def make(num_points: int) -> Variant:
        points = [{"rule": "sgd", "lr.peak": 10**-2.7, "momentum.value": 0.8 - i / 100} for i in range(num_points)]
        return toy(enqueued={f"part-{i}": point for i, point in enumerate(points)})

    return make


def test_enqueued_points_leave_the_race_alone_and_the_model_learns_from_them(
    search: Search, parted: Callable[[int], Variant]
) -> None:
    def from_the_points(accuracy_there: float) -> float:
        """Median distance of the model's trials, where the points are as good as that and all else is middling."""
        runs = [
            search(parted(4), lambda settings: accuracy_there if distance(settings) < 0.05 else 0.5, 8, 10, "tpe", seed)
            for seed in range(8)
        ]
        return float(np.median([distance(settings) for _, drawn in runs for settings in drawn[13:]]))

    without, drawn = (search(parted(number), flat, 8, 10)[1] for number in (0, 4))
    assert without[:9] == drawn[:9]
    assert [settings["momentum.value"] for settings in drawn[9:13]] == pytest.approx([0.8, 0.79, 0.78, 0.77])
    assert from_the_points(0.9) < 0.5 * from_the_points(0.1)


@pytest.mark.parametrize(
    ("name", "sampler"),
    [("hybrid", "tpe"), ("composed", "tpe"), ("composed", "gp"), ("composed", "cmaes"), ("hybrid", "random")],
)
@pytest.mark.usefixtures("one_thread")
def test_the_spaces_with_conditions_are_searched_without_a_complaint(
    search: Search, name: str, sampler: SamplerName, caplog: pytest.LogCaptureFixture
) -> None:
    variant = SPACES[name]

    def accuracy(settings: dict[str, object]) -> float:
        return 0.9 if settings["order.composition"] == "forward" else 0.5

    num_tried = 20 if sampler == "tpe" else 6
    with caplog.at_level(logging.WARNING, logger="optuna"):
        logging.getLogger("optuna").addHandler(caplog.handler)  # Optuna's loggers hand nothing up
        study, drawn = search(variant, accuracy, 20, num_tried, sampler)
        logging.getLogger("optuna").removeHandler(caplog.handler)
    # Threads of other tests may have complaints of their own.
    assert not [record.getMessage() for record in caplog.records if record.name.startswith("optuna")]
    trials = study.study.get_trials()
    assert all(variant.contains({**variant.fixed, **trial.params}) for trial in trials)
    assert len({str(trial.params) for trial in trials}) == len(drawn)
    number = len(given_points(variant, num_tried))
    forward = [settings["order.composition"] == "forward" for settings in drawn]
    assert sampler != "tpe" or np.mean(forward[20 + number :]) > 0.7


@pytest.fixture
def conditional(toy: Callable[..., Variant]) -> Variant:
    """Momentum exists for one of three schedules only."""
    return toy(
        searched={
            "lr.peak": FloatDistribution(1e-3, 1.0, log=True),
            "lr.schedule": CategoricalDistribution(("cosine", "linear", "constant")),
            "momentum.value": FloatDistribution(0.0, 0.8),
        },
        default={"lr.peak": 0.1, "lr.schedule": "cosine", "momentum.value": 0.5},
        when={"momentum.value": ("lr.schedule", ("cosine",))},
    )


def test_a_setting_that_does_not_exist_is_not_drawn(search: Search, conditional: Variant) -> None:
    study, drawn = search(conditional, flat, 20, 20)
    trials = study.study.get_trials()
    for trial, settings in zip(trials, drawn, strict=True):
        assert ("momentum.value" in trial.params) == (settings["lr.schedule"] == "cosine")
    assert 5 < sum("momentum.value" in trial.params for trial in trials) < 35


def test_the_model_learns_in_a_space_with_conditions(search: Search, conditional: Variant) -> None:
    def accuracy(settings: dict[str, object]) -> float:
        return 0.9 - distance(settings) / 10 if settings["lr.schedule"] == "cosine" else 0.1

    runs = [search(conditional, accuracy, 16, 17, "tpe", seed)[1] for seed in range(4)]
    shares = np.array([[settings["lr.schedule"] == "cosine" for settings in drawn] for drawn in runs])
    assert shares[:, :16].mean() < 0.55 and shares[:, 17:].mean() > 0.75


def test_conditions_make_groups_and_other_spaces_are_modelled_jointly(
    search: Search, toy: Callable[..., Variant], conditional: Variant
) -> None:
    """Optuna keeps what was drawn jointly under a key of its own; the model draws so, slots and points do not."""
    for variant in (toy(), conditional):
        trials = search(variant, lambda settings: 1 - distance(settings), 4, 5)[0].study.get_trials()
        jointly = [any("relative_params" in key for key in trial.system_attrs) for trial in trials]
        assert jointly == [False] * 5 + [True] * 4
