"""Where trials are placed: quantiles, an even random arm, enqueued points, and a model arm that learns at once."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import TPESampler
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from search_spaces import SPACES, Variant
from tuner.core.metrics import EpochMetrics
from tuner.core.serialization import flatten
from tuner.core.variants import from_unit
from tuner.study.optuna_study import VariantStudy
from tuner.study.sampler import SearchSampler, num_default, num_random, sobol_point

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


@pytest.mark.parametrize("dimension", [1, 5, 9])
def test_sobol_points_are_balanced_and_distinct(dimension: int) -> None:
    points = np.array([sobol_point(dimension, index, seed=3) for index in range(16)])
    assert ((points >= 0) & (points < 1)).all()
    for column in points.T:
        assert sorted((16 * column).astype(int)) == list(range(16)), "one point in each sixteenth of each setting"
    if dimension > 1:
        quadrants = Counter(map(tuple, (2 * points[:, :2]).astype(int)))
        assert set(quadrants.values()) == {4}


def test_sobol_points_depend_on_seed_and_position_alone() -> None:
    assert (sobol_point(4, 5, seed=1) == sobol_point(4, 5, seed=1)).all()
    assert (sobol_point(4, 5, seed=1) != sobol_point(4, 5, seed=2)).all()


def test_the_random_arm_is_the_larger_half() -> None:
    assert [num_random(n) for n in range(1, 7)] == [1, 1, 2, 2, 3, 3]


@pytest.fixture
def parted(toy: Callable[..., Variant]) -> Callable[[int], Variant]:
    """Makes the toy variant with so many enqueued points, beside the optimum of `distance`."""

    def make(num_points: int) -> Variant:
        points = [{"rule": "sgd", "lr.peak": 10**-2.7, "momentum.value": 0.8 - i / 100} for i in range(num_points)]
        return toy(enqueued={f"part-{i}": point for i, point in enumerate(points)})

    return make


def test_enqueued_points_take_at_most_half_of_the_models_trials(parted: Callable[[int], Variant]) -> None:
    assert [num_default(parted(8), n) for n in (1, 2, 3, 4, 5, 8, 9, 12, 100)] == [0, 0, 0, 1, 1, 2, 2, 3, 8]
    assert num_default(parted(0), 100) == 0


Search = Callable[..., tuple[VariantStudy, list[dict[str, object]]]]


@pytest.fixture
def search(epoch: Callable[..., EpochMetrics]) -> Search:
    """Runs a study whose accuracy a function of the settings gives; returns it and the settings of its trials."""

    def run(
        variant: Variant, accuracy: Callable[[dict[str, object]], float], num_trials: int, seed: int = 0
    ) -> tuple[VariantStudy, list[dict[str, object]]]:
        study = VariantStudy(
            storage=InMemoryStorage(),
            search="s",
            variant=variant,
            objective="accuracy",
            targets=(0.9,),
            num_trials=num_trials,
            seed=seed,
        )
        drawn: list[dict[str, object]] = []
        for _ in range(num_trials):
            number = study.ask()
            drawn.append(dict(flatten(study.settings(number))))
            study.tell(number, "finished", [epoch(1, accuracy(drawn[-1]))])
        return study, drawn

    return run


def distance(settings: dict[str, object]) -> float:
    """From an optimum in a corner, in units of the ranges."""
    lr, momentum = settings["lr.peak"], settings["momentum.value"]
    assert isinstance(lr, float) and isinstance(momentum, float)
    return math.hypot((math.log10(lr) + 2.7) / 3, (momentum - 0.8) / 0.9)


def test_variants_of_equal_spaces_get_different_points(search: Search, toy: Callable[..., Variant]) -> None:
    one, other = (search(toy(name), lambda settings: 0.5, 4)[1] for name in ("one", "other"))
    assert not {settings["lr.peak"] for settings in one} & {settings["lr.peak"] for settings in other}


def test_the_random_arm_listens_to_no_result(search: Search, toy: Callable[..., Variant]) -> None:
    good, bad = (search(toy(), lambda settings, value=value: value - distance(settings), 8)[1] for value in (1.0, -5.0))
    flat = search(toy(), lambda settings: 0.3, 8)[1]
    assert good[:4] == bad[:4] == flat[:4]
    assert good[4:] != flat[4:]


def test_the_model_arm_learns_from_the_random_arm_with_its_first_trial(
    search: Search, toy: Callable[..., Variant]
) -> None:
    first, random, model = [], [], []
    for seed in range(12):
        distances = [distance(s) for s in search(toy(), lambda settings: 1 - distance(settings), 24, seed)[1]]
        random += distances[:12]
        model += distances[12:]
        first.append(distances[12])
    assert np.median(first) < 0.6 * np.median(random), "a start-up phase would draw it as the random arm is drawn"
    assert np.median(model) < 0.6 * np.median(random)


def test_the_model_arm_draws_where_nothing_has_finished(toy: Callable[..., Variant]) -> None:
    study = VariantStudy(
        storage=InMemoryStorage(),
        search="s",
        variant=toy(),
        objective="accuracy",
        targets=(0.9,),
        num_trials=8,
        seed=0,
    )
    drawn = [study.settings(study.ask()).lr.peak for _ in range(8)]
    assert len(set(drawn)) == 8
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
    sampler = SearchSampler(toy(), seed=0)
    study = optuna.create_study(sampler=sampler)
    counts = []
    for index in range(40):
        sampler.choose("model", index)
        before = num_compared
        trial = study.ask()
        value = trial.suggest_float("lr.peak", 1e-3, 1.0, log=True) + trial.suggest_float("momentum.value", 0, 0.9)
        counts.append(num_compared - before)
        trial.report(value, 1)
        study.tell(trial, *([None, TrialState.PRUNED] if index % 2 else [value]))
        found = sampler.infer_relative_search_space(study, study.trials[-1])
        asked = TPESampler(multivariate=True).infer_relative_search_space(study, study.trials[-1])
        assert list(found.items()) == list(asked.items())
    assert len(found) == 2
    assert max(counts[10:]) <= max(counts[:10])


def test_a_sobol_sequence_is_begun_once_a_trial(search: Search, toy: Callable[..., Variant]) -> None:
    sobol_point.cache_clear()
    search(toy(), lambda settings: 0.5, 8)
    assert sobol_point.cache_info().misses == 4


def test_enqueued_points_leave_the_random_arm_alone_and_the_model_learns_from_them(
    search: Search, parted: Callable[[int], Variant]
) -> None:
    def from_the_points(accuracy_there: float) -> float:
        """Median distance of the model's trials, where the points are as good as that and all else is middling."""
        runs = [
            search(parted(4), lambda settings: accuracy_there if distance(settings) < 0.05 else 0.5, 16, seed)[1]
            for seed in range(8)
        ]
        return float(np.median([distance(settings) for drawn in runs for settings in drawn[12:]]))

    without, drawn = (search(parted(number), lambda settings: 0.5, 16)[1] for number in (0, 4))
    assert without[:8] == drawn[:8]
    assert [settings["momentum.value"] for settings in drawn[8:12]] == pytest.approx([0.8, 0.79, 0.78, 0.77])
    assert from_the_points(0.9) < 0.5 * from_the_points(0.1)


@pytest.mark.parametrize("name", ["hybrid", "composed"])
def test_the_spaces_with_conditions_are_searched_without_a_complaint(
    search: Search, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    variant = SPACES[name]
    with caplog.at_level(logging.WARNING, logger="optuna"):
        logging.getLogger("optuna").addHandler(caplog.handler)  # Optuna's loggers hand nothing up
        study, drawn = search(variant, lambda settings: 0.9 if settings["order.composition"] == "forward" else 0.5, 40)
        logging.getLogger("optuna").removeHandler(caplog.handler)
    # Threads of other tests may have complaints of their own.
    assert not [record for record in caplog.records if record.name.startswith("optuna")]
    trials = study.study.get_trials()
    assert all(variant.contains({**variant.fixed, **trial.params}) for trial in trials)
    assert len({str(trial.params) for trial in trials}) == len(drawn) == 40
    arms = [trial.user_attrs["arm"] for trial in trials]
    number = num_default(variant, 40)
    assert arms == ["random"] * 20 + ["default"] * number + ["model"] * (20 - number)
    forward = [settings["order.composition"] == "forward" for settings in drawn]
    assert np.mean(forward[20 + number :]) > 0.7


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


def test_conditions_warn_nobody(search: Search, conditional: Variant) -> None:
    search(conditional, lambda settings: 0.5, 2)


def test_a_setting_that_does_not_exist_is_not_drawn(search: Search, conditional: Variant) -> None:
    study, drawn = search(conditional, lambda settings: 0.5, 40)
    trials = study.study.get_trials()
    for trial, settings in zip(trials, drawn, strict=True):
        assert ("momentum.value" in trial.params) == (settings["lr.schedule"] == "cosine")
    assert 5 < sum("momentum.value" in trial.params for trial in trials) < 35


def test_in_a_space_with_conditions_random_points_are_independent(search: Search, conditional: Variant) -> None:
    drawn = search(conditional, lambda settings: 0.5, 64)[1][:32]
    sixteenths = Counter(int(32 * (math.log10(float(str(settings["lr.peak"]))) + 3) / 3) for settings in drawn)
    assert max(sixteenths.values()) > 1, "32 Sobol points would lie one in each part"
    again = search(conditional, lambda settings: 0.1, 64)[1][:32]
    assert drawn == again


def test_the_model_arm_learns_in_a_space_with_conditions(search: Search, conditional: Variant) -> None:
    def accuracy(settings: dict[str, object]) -> float:
        return 0.9 - distance(settings) / 10 if settings["lr.schedule"] == "cosine" else 0.1

    shares = [[s["lr.schedule"] == "cosine" for s in search(conditional, accuracy, 32, seed)[1]] for seed in range(4)]
    random, model = np.array(shares)[:, :16].mean(), np.array(shares)[:, 16:].mean()
    assert random < 0.55 and model > 0.75


def test_conditions_make_groups_and_other_spaces_are_modelled_jointly(
    search: Search, toy: Callable[..., Variant], conditional: Variant
) -> None:
    """Optuna keeps what was drawn jointly under a key of its own; the model arm draws so, the random arm does not."""
    for variant in (toy(), conditional):
        trials = search(variant, lambda settings: 1 - distance(settings), 8)[0].study.get_trials()
        jointly = [any("relative_params" in key for key in trial.system_attrs) for trial in trials]
        assert jointly == [False] * 4 + [True] * 4
