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
from tuner.study.rounds import quantile
from tuner.study.trial_record import phase_of

Epoch = Callable[..., EpochMetrics]
Toy = Callable[..., Variant]


@pytest.fixture
def storage(storage_url: str) -> BaseStorage:
    return open_storage(storage_url)


def opened(storage: BaseStorage, variant: Variant, **changes: Any) -> VariantStudy:
    spec = SearchSpec.from_flags(**{"objective": "auc", "targets": (0.9, 0.95), "trials": 8, **changes})
    return VariantStudy(storage, spec, variant, search="s")


def stored(storage: BaseStorage, variant: str = "toy") -> list[FrozenTrial]:
    return storage.get_all_trials(storage.get_study_id_from_name(f"s/{variant}"))


def test_names() -> None:
    assert study_name("first", "sgdm") == "first/sgdm"
    assert trial_name("sgdm", 7) == "sgdm-07"
    assert trial_name("sgdm", 123) == "sgdm-123"


def test_settings_are_the_fixed_and_the_drawn_ones(storage: BaseStorage) -> None:
    study = opened(storage, SPACES["lpsgdm"])
    optimizer = study.settings(study.ask_race(0, 0))
    assert (optimizer.rule, optimizer.norm.interval, optimizer.norm.scale) == ("lpsgd", "epoch", "none")
    assert set(stored(storage, "lpsgdm")[0].params) == set(SPACES["lpsgdm"].searched)


def test_settings_asked_again_are_the_same(storage: BaseStorage, toy: Toy) -> None:
    study = opened(storage, toy())
    numbers = [study.ask_race(0, 3), study.ask_refine(0, 8), study.ask_refine(1, 8), study.ask_race(1, 0)]
    drawn = [study.settings(number) for number in numbers]
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
    study = opened(storage, variant)
    for number in [*(study.ask_race(0, slot) for slot in range(4)), *(study.ask_refine(k, 4) for k in range(4))]:
        optimizer = study.settings(number)
        assert min(abs(optimizer.lr.peak - value) for value in (0.1, 0.3, 0.5)) < 1e-9
        assert optimizer.norm.p_max in range(2, 10) and isinstance(optimizer.norm.p_max, float)
        assert optimizer.lr.schedule in ("cosine", "linear")


def test_a_variant_that_searches_nothing_has_trials_all_the_same(storage: BaseStorage, toy: Toy) -> None:
    study = opened(storage, toy(fixed={"rule": "sgd", "lr.peak": 0.2}, searched={}, default={}))
    numbers = [study.ask_race(0, 0), study.ask_refine(0, 2), study.ask_refine(1, 2), study.ask_repeat(1, 1)]
    assert [study.settings(number).lr.peak for number in numbers] == [0.2] * 4


def test_a_slot_has_the_same_quantiles_in_every_variant_that_has_the_setting(toy: Toy) -> None:
    """At quantile u, lr.peak is 1e-3 1000^u in one variant and 1e-2 10^u in the other."""
    narrow = {"lr.peak": FloatDistribution(1e-2, 1e-1, log=True), "decay.weight": FloatDistribution(0, 1)}
    other = toy("other", searched=narrow, default={"lr.peak": 0.05, "decay.weight": 0.5})
    one, two = (opened(InMemoryStorage(), variant) for variant in (toy("one"), other))
    for place in range(8):
        number, slot = divmod(place, 4)
        ours, theirs = (study.settings(study.ask_race(number, slot)) for study in (one, two))
        u = quantile("lr.peak", 0, place)
        assert ours.lr.peak == pytest.approx(1e-3 * 1000**u) and theirs.lr.peak == pytest.approx(1e-2 * 10**u)
        assert ours.momentum.value == pytest.approx(0.9 * quantile("momentum.value", 0, place))


def test_the_settings_of_a_slot_depend_on_nothing_but_the_seed_and_the_place(toy: Toy, epoch: Epoch) -> None:
    alone = opened(InMemoryStorage(), toy())
    expected = alone.settings(alone.ask_race(1, 2))
    study = opened(InMemoryStorage(), toy(), trials=16)
    for slot in (3, 0):
        study.tell(study.ask_race(0, slot), "finished", [epoch(10, 0.9)])
    study.ask_refine(0, 8)
    assert study.settings(study.ask_race(1, 2)) == expected == study.settings(study.ask_race(1, 2))
    other = opened(InMemoryStorage(), toy(), seed=1)
    assert other.settings(other.ask_race(1, 2)) != expected


PARTS = {
    name: {"rule": "sgd", "lr.peak": lr, "momentum.value": 0.5} for name, lr in [("a", 0.2), ("b", 0.3), ("c", 0.4)]
}


def places(study: VariantStudy) -> list[dict[str, Any]]:
    return [study.place(trial.number) for trial in study.study.get_trials()]


def test_a_trial_says_what_it_is_for_also_to_the_next_program(storage: BaseStorage, toy: Toy) -> None:
    study = opened(storage, toy(enqueued=PARTS))
    study.ask_race(3, 1)
    for index in range(5):
        study.ask_refine(index, 5)
    study.ask_repeat(2, 1)
    expected = [
        {"round": 3, "slot": 1},
        {"index": 0, "point": "default"},
        {"index": 1, "point": "a"},
        *({"index": index} for index in (2, 3, 4)),
        {"repeats": 2, "repeat": 1},
    ]
    assert places(study) == places(opened(storage, toy(enqueued=PARTS))) == expected
    assert study.tags(0) == {"round": "3", "slot": "1"} and study.tags(6) == {"repeats": "2", "repeat": "1"}
    assert [phase_of(place) for place in places(study)] == ["race", *["refine"] * 6]
    drawn = [study.settings(number) for number in range(7)]
    assert (drawn[1].lr.peak, drawn[2].lr.peak) == (0.1, 0.2)
    assert drawn[6] == drawn[2] and len(set(drawn)) == 6


def test_more_settings_go_on_with_the_points_and_draw_none_twice(toy: Toy) -> None:
    storage = InMemoryStorage()
    small = opened(storage, toy(enqueued=PARTS), sampler="random")
    for index in range(4):
        small.ask_refine(index, 4)
    large = opened(storage, toy(enqueued=PARTS), sampler="random")
    for index in range(4, 12):
        large.ask_refine(index, 12)
    points = [place.get("point") for place in places(large)]
    assert points == ["default", "a", None, None, "b", "c", *[None] * 6]
    assert len({large.settings(number) for number in range(12)}) == 12


KINDS: dict[str, tuple[int, Callable[[VariantStudy], int]]] = {
    "race": (0, lambda study: study.ask_race(1, 2)),
    "default": (0, lambda study: study.ask_refine(0, 8)),
    "point": (1, lambda study: study.ask_refine(1, 8)),
    "model": (4, lambda study: study.ask_refine(4, 8)),
    "repeat": (1, lambda study: study.ask_repeat(0, 2)),
}
"""Kind of a trial -> number of trials of the refinement before it, and how it is asked for."""


@pytest.mark.parametrize(("num_before", "ask"), KINDS.values(), ids=list(KINDS))
@pytest.mark.parametrize("done", [False, True])
def test_a_program_killed_while_it_asks_leaves_a_whole_trial_or_none(
    toy: Toy,
    epoch: Epoch,
    monkeypatch: pytest.MonkeyPatch,
    num_before: int,
    ask: Callable[[VariantStudy], int],
    done: bool,
) -> None:
    """Every trial ends up with the settings and the place that it would have had."""
    variant = toy(enqueued=PARTS)

    def asked(*, killed: bool) -> list[tuple[Any, ...]]:
        storage = InMemoryStorage()
        study = opened(storage, variant)
        for index in range(num_before):
            study.tell(study.ask_refine(index, 8), "finished", [epoch(10, 0.5 + index / 100)])
        create = storage.create_new_trial

        def create_and_die(*args: Any, **named: Any) -> None:
            if done:
                create(*args, **named)
            raise KeyboardInterrupt

        if killed:
            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(storage, "create_new_trial", create_and_die)
                ask(study)
            study = opened(storage, variant)
            assert study.existing(ended=False) == ([num_before] if done else [])
        if not (killed and done):
            assert ask(study) == num_before
        assert study.settings(num_before) == opened(storage, variant).settings(num_before)
        return [(trial.params, trial.user_attrs) for trial in stored(storage)]

    expected = asked(killed=False)
    assert len(expected) == num_before + 1
    assert asked(killed=True) == expected


def test_a_trial_is_one_write(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that nothing of it has to be mended, and a database far away is asked once."""
    storage = InMemoryStorage()
    study = opened(storage, toy(enqueued=PARTS))
    calls: list[str] = []
    for name in (name for name in dir(BaseStorage) if not name.startswith("_")):
        original = getattr(storage, name)

        def noted(*args: Any, name: str = name, original: Any = original, **named: Any) -> Any:
            calls.append(name)
            return original(*args, **named)

        monkeypatch.setattr(storage, name, noted)
    numbers = [study.ask_race(0, 0), *(study.ask_refine(index, 5) for index in range(5)), study.ask_repeat(1, 1)]
    assert [study.settings(number) is not None for number in numbers]
    assert calls == ["create_new_trial"] * 7


def test_a_variant_stays_where_it_has_joined(storage: BaseStorage, toy: Toy) -> None:
    study = opened(storage, toy())
    assert study.joined == 0
    study.join(3)
    assert study.joined == 3
    again = opened(storage, toy())
    again.join(7)
    assert again.joined == 3
    assert storage.get_study_user_attrs(storage.get_study_id_from_name("s/toy")) == {"joined": 3}


def test_variants_join_at_the_first_round_of_which_no_trial_exists(toy: Toy, tmp_path: Path) -> None:
    storage = InMemoryStorage()

    def joined(*names: str, trials: int = 40) -> dict[str, int]:
        spec = SearchSpec(name="s", output=str(tmp_path), trials=trials)
        studies = open_studies(spec, [toy(name) for name in names], storage, search="s")
        return {name: study.joined for name, study in studies.items()}

    assert joined("a", "b") == {"a": 0, "b": 0}
    opened(storage, toy("a")).ask_refine(0, 4)
    assert joined("a", "b", "c") == {"a": 0, "b": 0, "c": 0}, "no round has begun"
    opened(storage, toy("b")).ask_race(4, 1)
    opened(storage, toy("a")).ask_race(2, 0)
    assert joined("d", "a", "b", "c") == {"d": 5, "a": 0, "b": 0, "c": 0}
    opened(storage, toy("d")).ask_race(8, 0)
    with pytest.raises(InvalidInput, match=r"^--variants e: 9 rounds have begun without it, and --trials 36"):
        joined("a", "b", "c", "d", "e", trials=36)
    assert joined("a", "b", "c", "d", "e") == {"a": 0, "b": 0, "c": 0, "d": 5, "e": 9}


@pytest.mark.parametrize("status", ["finished", "diverged", "stopped", "failed"])
def test_the_storage_holds_what_optuna_itself_would_have_written(toy: Toy, epoch: Epoch, status: str) -> None:
    storage = InMemoryStorage()
    study = opened(storage, toy())
    number = study.ask_race(0, 0)
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
    open_studies(spec, [toy("a"), toy("a-b")], storage, search="s")["a-b"].ask_race(0, 0)
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
        number = study.ask_race(0, 0)
        study.tell(number, status, [epoch(1, 0.5)], "it broke" if status == "failed" else None)
    study.ask_race(0, 0)
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
    study.ask_race(0, 0)
    study.tell(0, "finished", [epoch(10, 0.8)])
    value = stored(storage)[0].value
    study.tell(0, "failed", [epoch(10, 0.1)], "late")
    trial = stored(storage)[0]
    assert (trial.state, trial.value, trial.user_attrs["status"]) == (TrialState.COMPLETE, value, "finished")
    assert "failure" not in trial.user_attrs


def test_a_resumed_trial_that_fails_says_why(storage: BaseStorage, toy: Toy) -> None:
    study = opened(storage, toy())
    study.ask_race(0, 0)
    again = opened(storage, toy())
    again.tell(0, "failed", [], "out of memory")
    assert again.tags(0) == {"round": "0", "slot": "0", "failure": "out of memory"}


def test_a_failure_that_was_not_told_is_forgotten(
    storage: BaseStorage, toy: Toy, epoch: Epoch, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = opened(storage, toy())
    study.ask_race(0, 0)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "set_trial_state_values", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            study.tell(0, "failed", [], "the worker died")
    again = opened(storage, toy())
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
        number = study.ask_race(0, 0)
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
        number = study.ask_race(0, 0)
        study.report(number, [epoch(1, accuracy)])
    poor, good = (trial.intermediate_values[10] for trial in stored(storage))
    assert good > poor if direction == "MAXIMIZE" else good < poor


@pytest.mark.parametrize("objective", ["time-to-target", "accuracy", "auc"])
def test_the_last_running_value_is_the_final_value(toy: Toy, epoch: Epoch, objective: Objective) -> None:
    storage = InMemoryStorage()
    study = opened(storage, toy(), objective=objective)
    study.ask_race(0, 0)
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
    study.ask_race(0, 0)
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
        number = study.ask_race(0, 0)
        study.report(number, [epoch(1, accuracy)])
        study.tell(number, "finished", [epoch(1, accuracy)])
    assert [trial.intermediate_values for trial in stored(storage)] == [{}] * 4
    assert stored(storage)[1].values == [pytest.approx(10 * 0.95 / 0.96), 0.96], "the highest target is 95%"


def test_what_concerns_one_trial_does_not_list_all(
    storage: BaseStorage, toy: Toy, epoch: Epoch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of thousands of trials, each of which is told of several times."""
    study = opened(storage, toy())
    number = study.ask_race(0, 0)

    def listed(*_: Any, **__: Any) -> list[FrozenTrial]:
        raise AssertionError("all trials are listed")

    monkeypatch.setattr(InMemoryStorage, "get_all_trials", listed)
    monkeypatch.setattr(type(storage), "get_all_trials", listed)
    assert study.place(number) == {"round": 0, "slot": 0}
    study.settings(number)
    study.report(number, [epoch(1, 0.5)])
    study.tell(number, "finished", [epoch(1, 0.5)])
