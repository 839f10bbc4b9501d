"""Specs: plain data, out and back, by dotted name, refusing what is out of range."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from typing import Any

import pytest

from tuner.core.errors import InvalidInput, unknown
from tuner.core.optimizer_spec import DecaySpec, LearningRateSpec, MomentumSpec, NormSpec
from tuner.core.serialization import digest, flatten, from_dict, to_json, with_settings
from tuner.core.trial_spec import OptimizerSpec, TrialSpec, WorkloadSpec

ODD = TrialSpec(
    workload=WorkloadSpec(data="imagefolder", data_dir="a b/ü", augment=False),
    optimizer=OptimizerSpec(
        rule="lpsgd", lr=LearningRateSpec(peak=0.1 + 0.2), norm=NormSpec(p_max=math.inf, shape="step")
    ),
    targets=(0.5, 0.75, 0.975),
    max_loss=math.inf,
    seed=2**62 - 1,
)


@pytest.mark.parametrize("spec", [TrialSpec(), ODD], ids=["default", "odd"])
def test_json_and_back(spec: TrialSpec) -> None:
    again = from_dict(TrialSpec, json.loads(to_json(spec)))
    assert again == spec
    assert type(again.optimizer.norm) is NormSpec and type(again.targets) is tuple
    assert to_json(again) == to_json(spec)


def test_json_is_one_form_for_equal_specs() -> None:
    assert to_json(TrialSpec(seed=1, epochs=2)) == to_json(TrialSpec(epochs=2, seed=1))
    assert "\n" not in to_json(ODD)


def test_absent_fields_take_their_defaults() -> None:
    assert from_dict(TrialSpec, {}) == TrialSpec()
    assert from_dict(TrialSpec, {"optimizer": {"lr": {"peak": 0.3}}}).optimizer.lr == LearningRateSpec(peak=0.3)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"optimiser": {}}, "unknown parameter 'optimiser': did you mean 'optimizer'?"),
        (
            {"optimizer": {"lr": {"peek": 1}}},
            "unknown parameter 'optimizer.lr.peek': did you mean 'optimizer.lr.peak'?",
        ),
        ({"optimizer": {"lr": {"peak": -1}}}, "lr.peak = -1.0: must be above 0 and finite"),
    ],
)
def test_data_that_is_no_spec_is_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        from_dict(TrialSpec, values)
    assert says in str(caught.value)


def test_the_digest_is_the_same_in_every_process_and_differs_with_every_leaf() -> None:
    command = (
        "from tuner.core.serialization import digest; from tuner.core.trial_spec import *;"
        "print(digest(TrialSpec(seed=5, targets=(0.5,))))"
    )
    printed = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == digest(TrialSpec(seed=5, targets=(0.5,)))
    changes: dict[str, Any] = {
        "optimizer.lr.peak": 0.2,
        "optimizer.norm.p_max": math.inf,
        "workload.model": "resnet18",
        "seed": 1,
        "epochs": 11,
        "compile": True,
    }
    digests = {digest(with_settings(TrialSpec(), {name: value})) for name, value in changes.items()}
    assert len(digests | {digest(TrialSpec())}) == len(changes) + 1


def test_flat_names_cover_every_leaf_and_go_back() -> None:
    flat = flatten(ODD)
    assert flat["optimizer.norm.p_max"] == math.inf and flat["targets"] == (0.5, 0.75, 0.975)
    assert not any(isinstance(value, OptimizerSpec | LearningRateSpec | NormSpec) for value in flat.values())
    settings: dict[str, Any] = flat
    assert with_settings(TrialSpec(), settings) == ODD


def test_one_leaf_is_changed_and_the_others_stay() -> None:
    before = flatten(ODD.optimizer)
    after = flatten(with_settings(ODD.optimizer, {"momentum.value": 0.3, "rule": "sgd"}))
    assert {name for name in before if before[name] != after[name]} == {"momentum.value", "rule"}


def test_settings_that_bound_each_other_are_set_together() -> None:
    optimizer = with_settings(OptimizerSpec(), {"norm.p_end": 4.0, "norm.p_max": 9.0})
    assert (optimizer.norm.p_end, optimizer.norm.p_max) == (4.0, 9.0)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("optimizer.lr.peak", "3e-2", 0.03),
        ("optimizer.lr.peak", "1", 1.0),
        ("optimizer.norm.p_max", "inf", math.inf),
        ("optimizer.rule", "adamw", "adamw"),
        ("epochs", "12", 12),
        ("compile", "true", True),
        ("compile", "false", False),
        ("workload.data_dir", "some folder", "some folder"),
        ("workload.data_dir", "12", "12"),
        ("optimizer.lr.peak", 1, 1.0),
        ("workload.data_dir", None, None),
    ],
)
def test_text_is_read_as_the_type_of_its_field(name: str, text: Any, value: object) -> None:
    leaf = flatten(with_settings(TrialSpec(), {name: text}))[name]
    assert leaf == value and type(leaf) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("epochs", "1.5", "epochs = 1.5: must be int"),
        ("epochs", "many", "epochs = many: must be int"),
        ("compile", "yes", "compile = yes: must be bool"),
        ("optimizer.rule", "adam", "unknown rule 'adam': did you mean 'adamw'?"),
        ("optimizer.lr.peak", "nan", "lr.peak = nan: must be above 0 and finite"),
        ("optimizer.lr.peek", "1", "unknown parameter 'optimizer.lr.peek': did you mean 'optimizer.lr.peak'?"),
        ("optimizer.lr", "1", "unknown parameter 'optimizer.lr': did you mean 'optimizer.lr."),
        ("optimizer", "sgd", "unknown parameter 'optimizer'"),
        ("", "1", "unknown parameter ''"),
    ],
)
def test_text_that_is_no_value_is_refused_by_name(name: str, text: str, says: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        with_settings(TrialSpec(), {name: text})
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_text_that_is_no_number_is_refused_by_its_whole_name() -> None:
    with pytest.raises(InvalidInput, match=r"momentum\.value = high"):
        with_settings(OptimizerSpec(), {"momentum.value": "high"})


@pytest.mark.parametrize(
    ("kind", "name", "inside", "outside"),
    [
        (LearningRateSpec, "peak", (1e-12, 1e6), (0.0, -1.0, math.inf, math.nan)),
        (LearningRateSpec, "warmup", (0.0, 0.999), (-0.1, 1.0, math.nan)),
        (LearningRateSpec, "end", (0.0, 1.0), (-0.1, 1.1, math.nan)),
        (LearningRateSpec, "schedule", ("step", "one-cycle"), ("steps", "")),
        (MomentumSpec, "value", (0.0, 0.999), (-0.1, 1.0, math.nan)),
        (MomentumSpec, "zeta", (1e-3, 10.0), (0.0, -1.0, math.inf, math.nan)),
        (MomentumSpec, "cap", (0.5, 0.999), (0.0, 1.0, math.nan)),
        (MomentumSpec, "floor", (0.0, 0.99), (-0.1, 0.991, math.nan)),
        (MomentumSpec, "schedule", ("critical",), ("critcal",)),
        (NormSpec, "p_max", (2.0, math.inf), (1.9, -math.inf, math.nan)),
        (NormSpec, "p_end", (2.0,), (1.9, 2.1, math.nan)),
        (NormSpec, "hold", (0.0, 0.99), (-0.1, 1.0, math.nan)),
        (DecaySpec, "weight", (0.0, 10.0), (-1e-9, math.inf, math.nan)),
        (OptimizerSpec, "second_moment", (0.0, 0.9999), (-0.1, 1.0, math.nan)),
        (OptimizerSpec, "rule", ("sgd", "adamw", "lpsgd"), ("adam", "")),
        (WorkloadSpec, "batch_size", (1,), (0, -1)),
        (WorkloadSpec, "loader_workers", (0,), (-1,)),
        (TrialSpec, "epochs", (1,), (0,)),
        (TrialSpec, "max_loss", (1e-3, math.inf), (0.0, -1.0, math.nan)),
        (TrialSpec, "seed", (0, 2**62 - 1), (-1, 2**62)),
        (TrialSpec, "targets", ((), (0.1,), (0.1, 0.2)), ((0.0,), (1.0,), (0.2, 0.1), (0.1, 0.1), (math.nan,))),
    ],
)
def test_ranges_are_as_documented(kind: Any, name: str, inside: tuple[Any, ...], outside: tuple[Any, ...]) -> None:
    for value in inside:
        assert getattr(kind(**{name: value}), name) == value
    for value in outside:
        with pytest.raises(InvalidInput, match=name):
            kind(**{name: value})


def test_a_training_stops_at_no_target_that_it_does_not_have() -> None:
    assert TrialSpec(targets=(0.5,), stop_at_target=True).stop_at_target
    with pytest.raises(InvalidInput, match="targets"):
        TrialSpec(stop_at_target=True)


def test_an_unknown_name_is_answered_with_the_nearest_or_with_all() -> None:
    assert str(unknown("fruit", "aple", ["pear", "apple"])) == "unknown fruit 'aple': did you mean 'apple'?"
    assert str(unknown("fruit", "zzz", ["pear", "apple"])) == "unknown fruit 'zzz': choose from apple, pear"
    assert isinstance(unknown("fruit", "zzz", []), ValueError)
