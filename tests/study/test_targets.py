"""Targets measured from the baseline's default point: by hand, in a search, and in one that goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.simulated_search import Truth, simulate
from tuner.core.errors import InvalidInput
from tuner.core.metrics import EpochMetrics
from tuner.core.search_spec import SearchSpec
from tuner.core.trial_spec import USUAL_TARGETS, TrialSpec, WorkloadSpec
from tuner.search.arguments import parse
from tuner.study.results import load_search
from tuner.study.targets import measured_targets

Epoch = Callable[..., EpochMetrics]


def curve(epoch: Epoch, *accuracies: float) -> list[EpochMetrics]:
    """Evaluations after each tenth of the budget."""
    return [epoch(k, accuracy, chance=0.1) for k, accuracy in enumerate(accuracies, start=1)]


def test_targets_are_what_the_median_reached_at_a_third_and_at_four_fifths(epoch: Epoch) -> None:
    slow = curve(epoch, *[0.2] * 10)
    middle = curve(epoch, 0.2, 0.3, 0.4, 0.5, 0.5, 0.5, 0.6, 0.678, 0.9, 0.9)
    fast = curve(epoch, *[0.95] * 10)
    # A third of the budget is a third of the way from the third evaluation to the fourth.
    assert measured_targets([fast, middle, slow]) == (0.43, 0.67)


def test_an_accuracy_that_falls_again_counts_as_reached(epoch: Epoch) -> None:
    fell = curve(epoch, 0.7, 0.7, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.8, 0.8)
    assert measured_targets([fell]) == (0.7,), "both are 70%, and equal targets are one"


def test_a_divergence_reaches_nothing_more(epoch: Epoch) -> None:
    fallen = [*curve(epoch, 0.5, 0.6), epoch(3, 0.99, diverged=True, chance=0.1)]
    assert measured_targets([fallen]) == (0.6,)


def test_targets_are_whole_percents_that_a_search_can_have(epoch: Epoch) -> None:
    assert measured_targets([curve(epoch, *[1.0] * 10)]) == (0.99,)
    assert measured_targets([curve(epoch, *[0.0] * 10)]) == (0.1,), "chance is reached without a step"
    assert measured_targets([[epoch(1, 0.0, gradient_evaluations=100)]]) == (0.01,)
    assert measured_targets([curve(epoch, *[0.57] * 10)]) == (0.57,)
    assert measured_targets([]) == USUAL_TARGETS == measured_targets([[]])


def test_which_targets_a_search_has() -> None:
    assert SearchSpec().training.targets == (0.9, 0.95)
    assert SearchSpec.from_flags(targets="auto").training.targets == ()
    cifar = SearchSpec.from_flags(workload="cifar10")
    assert (cifar.targets, cifar.training.targets) == ("auto", ())
    assert SearchSpec.from_flags(workload="cifar10", targets=(0.4,)).training.targets == (0.4,)
    # From Python, a training with targets has said which.
    given = SearchSpec(training=TrialSpec(workload=WorkloadSpec(data="cifar10"), targets=(0.3, 0.6)))
    assert (given.targets, given.training.targets) == ((0.3, 0.6), (0.3, 0.6))
    measured = cifar.with_targets((0.9, 0.95))
    assert (measured.targets, measured.training.targets) == ("auto", (0.9, 0.95))
    assert SearchSpec.from_flags(**cifar.flags()) == cifar


@pytest.mark.parametrize("given", [(), (0.5, 0.4), (1.5,), "later"])
def test_targets_that_mean_nothing_are_refused(given: object) -> None:
    with pytest.raises(InvalidInput, match="targets"):
        SearchSpec.from_flags(targets=given)


def test_targets_on_the_command_line() -> None:
    assert parse(["--targets", "auto"])[0].targets == "auto"
    assert parse(["--targets", "0.3", "0.5"])[0].training.targets == (0.3, 0.5)


def test_a_search_trains_the_default_point_of_its_baseline_first_and_keeps_what_it_found(tmp_path: Path) -> None:
    spec = SearchSpec.from_flags(
        name="s", workload="cifar10", variants=("adamw", "sgdm"), trials=8, refine_trials=0, confirm_seeds=1
    )
    search = simulate(spec, {"sgdm": Truth(top=0.6), "adamw": Truth(top=0.7, lr_best=0.003)}, output=tmp_path)
    pilots = search.pilots()
    assert [record.name for record in pilots] == [f"sgdm/pilot-{k}" for k in (1, 2, 3)]
    assert list(search.records)[:3] == [record.name for record in pilots]
    assert all(r.spec.targets == () and r.history[-1].gradient_evaluations == 160 for r in pilots)
    assert {r.spec.optimizer for r in pilots} == {search.default_optimizer("sgdm")}
    assert len({r.spec.seed for r in search.records.values() if r.phase != "confirm"}) == 3 + 8
    expected = measured_targets([record.history for record in pilots])
    assert 0.3 < expected[0] < expected[1] < 0.6
    trained = [record for record in search.records.values() if record.phase != "pilot"]
    assert search.spec.training.targets == expected == trained[0].spec.targets
    assert {record.spec.targets for record in trained} == {expected}

    assert json.loads((tmp_path / "s" / "search.json").read_text())["targets"] == list(expected)
    read = load_search("s", output=str(tmp_path))
    assert read.spec.training.targets == expected and len(read.pilots()) == 3
    assert [r.spec for r in read.records.values()] and {r.spec for r in read.records.values()} == {
        r.spec for r in search.records.values()
    }
    again, _ = parse(["--resume", "s", "--output", str(tmp_path), "--trials", "12"])
    assert (again.targets, again.training.targets, again.trials) == ("auto", expected, 12)
