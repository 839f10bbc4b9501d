"""One Optuna study a variant: what is asked, told and kept, also by a program that is killed while it asks."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from search_spaces import SPACES, Variant
from tuner.core.errors import InvalidInput
from tuner.core.metrics import EpochMetrics
from tuner.core.search_spec import Objective, SearchSpec
from tuner.study.optuna_study import VariantStudy, open_storage, open_studies, study_name, trial_name

Epoch = Callable[..., EpochMetrics]
Toy = Callable[..., Variant]


@pytest.fixture
def storage(storage_url: str) -> BaseStorage:
    return open_storage(storage_url)


def opened(storage: BaseStorage, variant: Variant, **changes: Any) -> VariantStudy:
    values: dict[str, Any] = {"objective": "auc", "targets": (0.9, 0.95), "num_trials": 4, "seed": 0}
    return VariantStudy(storage=storage, search="s", variant=variant, **{**values, **changes})


def stored(storage: BaseStorage, variant: str = "toy") -> list[FrozenTrial]:
    return storage.get_all_trials(storage.get_study_id_from_name(f"s/{variant}"))


def test_names() -> None:
    assert study_name("first", "sgdm") == "first/sgdm"
    assert trial_name("sgdm", 7) == "sgdm-07"
    assert trial_name("sgdm", 123) == "sgdm-123"


def test_settings_are_the_fixed_and_the_drawn_ones(storage: BaseStorage) -> None:
    study = opened(storage, SPACES["lpsgdm"])
    optimizer = study.settings(study.ask())
    assert (optimizer.rule, optimizer.norm.interval, optimizer.norm.scale) == ("lpsgd", "epoch", "none")
    assert set(stored(storage, "lpsgdm")[0].params) == set(SPACES["lpsgdm"].searched)


def test_settings_asked_again_are_the_same(storage: BaseStorage, toy: Toy) -> None:
    study = opened(storage, toy())
    drawn = [study.settings(study.ask()) for _ in range(4)]
    assert [study.settings(number) for number in range(4)] == drawn
    assert [opened(storage, toy()).settings(number) for number in range(4)] == drawn
    assert len(set(map(str, drawn))) == 4


def test_every_kind_of_setting_comes_back_as_its_own_type(storage: BaseStorage, toy: Toy) -> None:
    variant = toy(
        searched={
            "lr.peak": FloatDistribution(0.1, 0.5, step=0.2),
            "norm.p_max": IntDistribution(2, 9, log=True),
            "lr.schedule": CategoricalDistribution(("cosine", "linear")),
        },
        default={"lr.peak": 0.1, "norm.p_max": 2, "lr.schedule": "cosine"},
    )
    study = opened(storage, variant, num_trials=8)
    for _ in range(8):
        optimizer = study.settings(study.ask())
        assert min(abs(optimizer.lr.peak - value) for value in (0.1, 0.3, 0.5)) < 1e-9
        assert optimizer.norm.p_max in range(2, 10) and isinstance(optimizer.norm.p_max, float)
        assert optimizer.lr.schedule in ("cosine", "linear")


def test_a_variant_that_searches_nothing_has_trials_all_the_same(storage: BaseStorage, toy: Toy) -> None:
    study = opened(storage, toy(fixed={"rule": "sgd", "lr.peak": 0.2}, searched={}, default={}))
    assert [study.settings(study.ask()).lr.peak for _ in range(4)] == [0.2] * 4


@pytest.mark.parametrize(("num_trials", "num_random"), [(1, 1), (4, 2), (5, 3)])
def test_half_of_the_trials_are_random(toy: Toy, num_trials: int, num_random: int) -> None:
    study = opened(InMemoryStorage(), toy(), num_trials=num_trials)
    for _ in range(num_trials):
        study.settings(study.ask())
    arms = [study.tags(number)["arm"] for number in range(num_trials)]
    assert arms == ["random"] * num_random + ["model"] * (num_trials - num_random)


def test_raised_trials_fill_both_arms_and_repeat_no_point(toy: Toy, epoch: Epoch) -> None:
    storage = InMemoryStorage()
    small = opened(storage, toy(), num_trials=4)
    for _ in range(4):
        small.settings(number := small.ask())
        small.tell(number, "finished", [epoch(10, 0.5)])
    large = opened(storage, toy(), num_trials=12)
    for _ in range(8):
        large.settings(large.ask())
    trials = stored(storage)
    arms = [trial.user_attrs["arm"] for trial in trials]
    assert arms == ["random"] * 2 + ["model"] * 2 + ["random"] * 4 + ["model"] * 4
    for arm in ("random", "model"):
        assert [t.user_attrs["arm_index"] for t in trials if t.user_attrs["arm"] == arm] == list(range(6))
    at_once = opened(InMemoryStorage(), toy(), num_trials=12)
    expected = [at_once.settings(at_once.ask()).lr.peak for _ in range(6)]
    assert [t.params["lr.peak"] for t in trials if t.user_attrs["arm"] == "random"] == pytest.approx(expected)


PARTS = {
    name: {"rule": "sgd", "lr.peak": lr, "momentum.value": 0.5} for name, lr in [("a", 0.1), ("b", 0.2), ("c", 0.3)]
}


def test_enqueued_points_come_after_the_random_arm(storage: BaseStorage, toy: Toy) -> None:
    study = opened(storage, toy(enqueued=PARTS), num_trials=9)
    drawn = [study.settings(study.ask()) for _ in range(9)]
    tags = [{"arm": "random"}] * 5 + [{"arm": "default", "part": part} for part in "ab"] + [{"arm": "model"}] * 2
    assert [study.tags(number) for number in range(9)] == tags
    assert [optimizer.lr.peak for optimizer in drawn[5:7]] == [0.1, 0.2]
    again = opened(storage, toy(enqueued=PARTS), num_trials=9)
    assert [again.settings(number) for number in range(9)] == drawn


def test_raised_trials_go_on_with_the_enqueued_points(toy: Toy) -> None:
    storage = InMemoryStorage()
    small = opened(storage, toy(enqueued=PARTS), num_trials=5)
    for _ in range(5):
        small.settings(small.ask())
    large = opened(storage, toy(enqueued=PARTS), num_trials=20)
    for _ in range(15):
        large.settings(large.ask())
    tags = [large.tags(number) for number in range(20)]
    assert [tag["arm"] for tag in tags] == [
        *(["random"] * 3 + ["default"] + ["model"]),
        *(["random"] * 7 + ["default"] * 2 + ["model"] * 6),
    ]
    assert [tag["part"] for tag in tags if "part" in tag] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("num_before", "arm", "num_trials"), [(0, "random", 4), (1, "model", 2), (2, "default", 4)], ids=str
)
@pytest.mark.parametrize("done", [False, True])
def test_a_program_killed_while_it_asks_leaves_a_whole_trial_or_none(
    toy: Toy, epoch: Epoch, monkeypatch: pytest.MonkeyPatch, num_before: int, arm: str, num_trials: int, done: bool
) -> None:
    """Every trial ends up with the settings, the arm and the place in it that it would have had."""
    variant = toy(enqueued=PARTS)

    def asked(*, killed: bool) -> list[tuple[Any, ...]]:
        storage = InMemoryStorage()
        study = opened(storage, variant, num_trials=num_trials)
        for _ in range(num_before):
            number = study.ask()
            study.tell(number, "finished", [epoch(10, 0.5)])
        create = storage.create_new_trial

        def create_and_die(*args: Any, **named: Any) -> None:
            if done:
                create(*args, **named)
            raise KeyboardInterrupt

        if killed:
            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(storage, "create_new_trial", create_and_die)
                study.ask()
            study = opened(storage, variant, num_trials=num_trials)
            assert study.existing(ended=False) == ([num_before] if done else [])
        if not (killed and done):
            study.ask()
        assert study.settings(num_before) == opened(storage, variant, num_trials=num_trials).settings(num_before)
        return [(trial.params, trial.user_attrs) for trial in stored(storage)]

    expected = asked(killed=False)
    assert [attributes["arm"] for _, attributes in expected] == ["random"] * num_before + [arm]
    assert asked(killed=True) == expected


def test_a_trial_is_one_write(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that nothing of it has to be mended, and a database far away is asked once."""
    storage = InMemoryStorage()
    study = opened(storage, toy(enqueued=PARTS), num_trials=9)
    calls: list[str] = []
    for name in (name for name in dir(BaseStorage) if not name.startswith("_")):
        original = getattr(storage, name)

        def noted(*args: Any, name: str = name, original: Any = original, **named: Any) -> Any:
            calls.append(name)
            return original(*args, **named)

        monkeypatch.setattr(storage, name, noted)
    for _ in range(9):
        study.settings(study.ask())
    assert calls == ["create_new_trial"] * 9


@pytest.mark.parametrize("status", ["finished", "diverged", "stopped", "failed"])
def test_the_storage_holds_what_optuna_itself_would_have_written(toy: Toy, epoch: Epoch, status: str) -> None:
    storage = InMemoryStorage()
    study = opened(storage, toy())
    number = study.ask()
    history = [epoch(1, 0.2), epoch(2, 0.4, diverged=status == "diverged")]
    for length in (1, 2):
        study.report(number, history[:length])
    theirs = optuna.create_study()
    trial = theirs.ask()
    for step, value in stored(storage)[0].intermediate_values.items():
        trial.report(value, step)
    study.tell(number, status, history)
    (ours,) = stored(storage)
    theirs.tell(trial, ours.values if ours.state == TrialState.COMPLETE else None, ours.state)
    assert ours.values == theirs.trials[0].values
    assert study.study.trials == [ours] or _alike(study.study.trials[0], ours)


def _alike(one: FrozenTrial, other: FrozenTrial) -> bool:
    times = ("datetime_complete", "_trial_id")
    return {**vars(one), **dict.fromkeys(times)} == {**vars(other), **dict.fromkeys(times)}


def test_a_folder_with_trials_that_the_storage_lacks_is_refused(toy: Toy, tmp_path: Path) -> None:
    storage = InMemoryStorage()
    spec = SearchSpec(name="s", output=str(tmp_path), trials=4)
    open_studies(spec, [toy("a"), toy("a-b")], storage, search="s")["a-b"].ask()
    for folder in ("a-b-00", "a.confirm-1", "a-01.confirm-1", "model"):
        (tmp_path / "s" / folder).mkdir(parents=True)
    open_studies(spec, [toy("a"), toy("a-b")], storage, search="s")
    (tmp_path / "s/a-b-01").mkdir()
    for there in (storage, empty := InMemoryStorage()):
        with pytest.raises(InvalidInput, match=r"^--storage: study 's/a-b' lacks trial a-b-0\d, .*copy"):
            open_studies(spec, [toy("a"), toy("a-b")], there, search="s")
    assert empty.get_all_studies() == [], "nothing was made there, where copies are to come"


def test_existing_trials_are_told_apart(storage: BaseStorage, toy: Toy, epoch: Epoch) -> None:
    study = opened(storage, toy())
    for status in ("finished", "stopped", "diverged", "failed"):
        study.settings(number := study.ask())
        study.tell(number, status, [epoch(1, 0.5)], "it broke" if status == "failed" else None)
    study.settings(study.ask())
    assert study.existing(ended=True) == study.existing(ended=False) == []
    again = opened(storage, toy())
    assert again.existing(ended=True) == [0, 1, 2, 3]
    assert again.existing(ended=False) == [4]
    assert [again.existing_status(number) for number in range(4)] == ["finished", "stopped", "diverged", "failed"]
    assert again.tags(3)["failure"] == "it broke"
    assert "failure" not in again.tags(0)
    states = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.COMPLETE, TrialState.FAIL, TrialState.RUNNING]
    assert [trial.state for trial in stored(storage)] == states


def test_a_trial_told_again_keeps_what_was_told_first(storage: BaseStorage, toy: Toy, epoch: Epoch) -> None:
    study = opened(storage, toy())
    study.settings(study.ask())
    study.tell(0, "finished", [epoch(10, 0.8)])
    value = stored(storage)[0].value
    study.tell(0, "failed", [epoch(10, 0.1)], "late")
    trial = stored(storage)[0]
    assert (trial.state, trial.value, trial.user_attrs["status"]) == (TrialState.COMPLETE, value, "finished")
    assert "failure" not in trial.user_attrs


def test_a_resumed_trial_that_fails_says_why(storage: BaseStorage, toy: Toy) -> None:
    study = opened(storage, toy())
    study.settings(study.ask())
    again = opened(storage, toy())
    again.tell(0, "failed", [], "out of memory")
    assert again.tags(0) == {"arm": "random", "failure": "out of memory"}


def test_a_failure_that_was_not_told_is_forgotten(
    storage: BaseStorage, toy: Toy, epoch: Epoch, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = opened(storage, toy())
    study.settings(study.ask())
    with monkeypatch.context() as patch:
        patch.setattr(storage, "set_trial_state_values", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            study.tell(0, "failed", [], "the worker died")
    again = opened(storage, toy())
    again.settings(0)
    again.tell(0, "finished", [epoch(10, 0.8)])
    assert "failure" not in opened(storage, toy()).tags(0)


@pytest.mark.parametrize("objective", ["time-to-target", "accuracy", "auc"])
def test_a_diverged_trial_has_the_worst_value(toy: Toy, epoch: Epoch, objective: Objective) -> None:
    storage = InMemoryStorage()
    study = opened(storage, toy(), objective=objective)
    curves = {
        "diverged": [epoch(1, 0.97), epoch(2, 0.99, diverged=True, train_loss=math.inf)],
        "finished": [epoch(number, 0.02) for number in range(1, 11)],
    }
    for status, history in curves.items():
        study.settings(number := study.ask())
        study.tell(number, status, history)
    diverged, poor = (trial.value for trial in stored(storage))
    assert diverged is not None and poor is not None and math.isfinite(diverged)
    assert diverged < poor if objective == "accuracy" else diverged > poor


@pytest.mark.parametrize(("objective", "direction"), [("accuracy", "MAXIMIZE"), ("auc", "MINIMIZE")])
def test_running_values_are_in_the_directions_of_the_study(
    toy: Toy, epoch: Epoch, objective: Objective, direction: str
) -> None:
    storage = InMemoryStorage()
    study = opened(storage, toy(), objective=objective)
    assert study.study.direction == StudyDirection[direction]
    for accuracy in (0.2, 0.9):
        study.settings(number := study.ask())
        study.report(number, [epoch(1, accuracy)])
    poor, good = (trial.intermediate_values[10] for trial in stored(storage))
    assert good > poor if direction == "MAXIMIZE" else good < poor


@pytest.mark.parametrize("objective", ["time-to-target", "accuracy", "auc"])
def test_the_last_running_value_is_the_final_value(toy: Toy, epoch: Epoch, objective: Objective) -> None:
    storage = InMemoryStorage()
    study = opened(storage, toy(), objective=objective)
    study.settings(study.ask())
    history = [epoch(number, number / 10.4) for number in range(1, 11)]
    for length in range(1, 11):
        study.report(0, history[:length])
    study.tell(0, "finished", history)
    trial = stored(storage)[0]
    assert list(trial.intermediate_values) == [10 * number for number in range(1, 11)]
    assert trial.intermediate_values[100] == trial.value


def test_epochs_reported_under_an_earlier_program_are_not_reported_again(
    storage: BaseStorage, toy: Toy, epoch: Epoch
) -> None:
    study = opened(storage, toy())
    study.settings(study.ask())
    history = [epoch(1, 0.2), epoch(2, 0.4)]
    study.report(0, history[:1])
    again = opened(storage, toy())
    for length in (1, 2):
        again.report(0, history[:length])
    assert list(stored(storage)[0].intermediate_values) == [10, 20]


def test_two_objectives_have_two_directions_and_no_running_values(toy: Toy, epoch: Epoch) -> None:
    storage = InMemoryStorage()
    study = opened(storage, toy(), objective="pareto")
    assert study.study.directions == [StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE]
    for accuracy in (0.5, 0.96, 0.97, 0.4):
        study.settings(number := study.ask())
        study.report(number, [epoch(1, accuracy)])
        study.tell(number, "finished", [epoch(1, accuracy)])
    assert [trial.intermediate_values for trial in stored(storage)] == [{}] * 4
    assert stored(storage)[1].values == [10.0, 0.96]


def test_what_concerns_one_trial_does_not_list_all(
    storage: BaseStorage, toy: Toy, epoch: Epoch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of thousands of trials, each of which is told of several times."""
    study = opened(storage, toy())
    number = study.ask()

    def listed(*_: Any, **__: Any) -> list[FrozenTrial]:
        raise AssertionError("all trials are listed")

    monkeypatch.setattr(InMemoryStorage, "get_all_trials", listed)
    monkeypatch.setattr(type(storage), "get_all_trials", listed)
    assert study.tags(number) == {"arm": "random"}
    study.settings(number)
    study.report(number, [epoch(1, 0.5)])
    study.tell(number, "finished", [epoch(1, 0.5)])
