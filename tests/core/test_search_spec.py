"""What a search is: what it refuses, what its trials are, and what a resumed one may change."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import pytest

from search_spaces import GROUPS
from tuner.core.errors import InvalidInput
from tuner.core.search_spec import (
    FAR_ABOVE_CRITICAL,
    FIRST_FRESH,
    FIRST_PILOT,
    FIRST_REFINE,
    FIRST_REPEAT,
    LEAVES,
    NUM_REPEATS,
    SET_BY_SEARCH,
    SearchSpec,
    seconds,
)
from tuner.core.serialization import digest, flatten
from tuner.core.trial_spec import OptimizerSpec, TrialSpec, WorkloadSpec
from tuner.study.search_folder import CHANGEABLE_ON_RESUME, refuse_changes


def refused(**values: Any) -> str:
    with pytest.raises(InvalidInput) as caught:
        SearchSpec.from_flags(**values)
    message = str(caught.value)
    assert message and "\n" not in message
    return message


@pytest.mark.parametrize("name", ["a", "first", "A_b-c.d", "_x", "2026", "a" * 100])
def test_plain_folder_names(name: str) -> None:
    assert SearchSpec(name=name).name == SearchSpec(resume=name).resume == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "a/b", "/a", "a\\b", "a b", "a\n", "\n", "-x", "ä", "a\0", "a:b", "~", "a" * 101]
)
@pytest.mark.parametrize("field", ["name", "resume"])
def test_names_that_are_no_plain_folder_names_are_refused(field: str, name: str) -> None:
    assert refused(**{field: name}).startswith(f"--{field} ")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"name": "a", "resume": "b"}, "--name a and --resume b"),
        ({"variants": ()}, "--variants"),
        ({"variants": ("sgdm", "sgdm")}, "--variants sgdm sgdm"),
        ({"trials": 0}, "--trials 0: must be at least 1"),
        ({"epochs": 0}, "--epochs 0: must be at least 1"),
        ({"batch_size": 0}, "--batch-size 0: must be at least 1"),
        ({"max_failures": -1}, "--max-failures -1: must be at least 0"),
        ({"max_concurrent": 0}, "--max-concurrent 0: must be at least 1"),
        ({"gpus_per_trial": -0.5}, "--gpus-per-trial -0.5: must be at least 0"),
        ({"gpus_per_trial": math.nan}, "--gpus-per-trial nan: must be at least 0"),
        ({"gpus_per_trial": math.inf}, "--gpus-per-trial inf"),
        ({"workers_per_trial": 0}, "--workers-per-trial 0: must be at least 1"),
        ({"workers_per_trial": 3}, "--batch-size 64: must be a multiple of --workers-per-trial 3"),
        (
            {"workers_per_trial": 2, "gpus_per_trial": 0.5},
            "--gpus-per-trial 0.5: must be whole with --workers-per-trial 2",
        ),
        ({"cpus_per_trial": 0.0}, "--cpus-per-trial 0.0: must be above 0"),
        ({"cpus_per_trial": math.nan}, "--cpus-per-trial nan: must be above 0"),
        ({"targets": ()}, "--targets"),
        ({"targets": (0.9, 0.8)}, "--targets (0.9, 0.8): must be increasing"),
        ({"targets": (0.9, 1.0)}, "--targets 1.0: must be in (0, 1)"),
        ({"targets": (math.nan,)}, "--targets nan: must be in (0, 1)"),
        ({"precision": "flaot32"}, "--precision 'flaot32': did you mean 'float32'?"),
        ({"confirm_seeds": -1}, "--confirm-seeds -1: must be at least 0"),
        ({"trials": 400_000}, "--trials 400000: must be at least 1 and below 400000"),
        ({"round_size": 0}, "--round-size 0: must be at least 1 and at most --trials 64"),
        ({"trials": 3}, "--round-size 4: must be at least 1 and at most --trials 3"),
        *(
            ({"alpha": alpha}, f"--alpha {alpha}: must be at least 0 and below 1")
            for alpha in (-0.1, 1.0, math.inf, math.nan)
        ),
        ({"refine_trials": -1}, "--refine-trials -1: must be at least 0"),
        ({"refine_trials": 90_000}, "--refine-trials 90000"),
        ({"sampler": "tp"}, "--sampler 'tp': did you mean 'tpe'?"),
        ({"confirm": "al"}, "--confirm 'al': did you mean 'all'?"),
        ({"prune_above_critical": 3.0}, "--prune-above-critical 3: needs --predict-critical-lr"),
        *(
            ({"prune_above_critical": factor, "predict_critical_lr": True}, f"--prune-above-critical {factor}: must be")
            for factor in (0.0, -1.0, math.nan, math.inf)
        ),
        ({"experiment": "  "}, "--experiment"),
        ({"time_budget": "soon"}, "--time-budget 'soon': must be a duration such as 90s, 20m or 2h"),
    ],
)
def test_values_out_of_range_are_refused_by_flag(values: dict[str, Any], says: str) -> None:
    assert says in refused(**values)


def test_a_seed_out_of_range_is_refused_as_it_was_typed() -> None:
    assert refused(seed=-1).startswith("--seed -1:")


def test_an_unknown_objective_is_refused_from_python_too() -> None:
    assert "'acuracy': did you mean 'accuracy'?" in refused(objective="acuracy")


@pytest.mark.parametrize(
    ("text", "expected"),
    [(None, None), ("90", 90), ("90s", 90), ("1.5m", 90), ("2h", 7200), (" 5s ", 5), ("0.001s", 0.001)],
)
def test_durations(text: str | None, expected: float | None) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "0", "0.0h", "-1s", "1d", "1e3", "nan", "inf", "1 m", "m", "1.m", "١s1"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="--time-budget"):
        seconds(text)


@pytest.mark.parametrize(
    ("values", "num_rounds"),
    [
        ({}, 16),
        ({"trials": 63}, 15),
        ({"trials": 7, "round_size": 7}, 1),
        ({"trials": 7, "round_size": 1}, 7),
        ({"objective": "auc"}, 16),
        ({"objective": "pareto"}, 0),
    ],
)
def test_a_race_has_as_many_rounds_as_its_trials_fill(values: dict[str, Any], num_rounds: int) -> None:
    assert SearchSpec.from_flags(**values).num_rounds == num_rounds


def test_the_baseline_is_sgdm_or_else_the_first_unless_one_is_named() -> None:
    assert SearchSpec().baseline_among(["adamw", "sgdm"]) == "sgdm"
    assert SearchSpec().baseline_among(["adamw", "lion"]) == "adamw"
    assert SearchSpec(baseline="lion").baseline_among(["adamw", "lion", "sgdm"]) == "lion"


def test_trainings_of_one_number_share_their_seed_and_all_others_differ() -> None:
    seeds = [
        SearchSpec(seed=seed).trial_spec(OptimizerSpec(), number).seed for seed in range(4) for number in range(100)
    ]
    assert len(set(seeds)) == 400
    adam = SearchSpec(seed=3).trial_spec(OptimizerSpec(rule="adamw"), 99)
    assert adam.seed == seeds[-1]


def test_everything_a_trial_can_differ_in_comes_from_the_search() -> None:
    values: dict[str, Any] = {
        "epochs": 3,
        "targets": (0.5,),
        "precision": "float64",
        "compile": True,
        "workload": "cifar10",
        "model": "resnet20",
        "data_dir": "/data",
        "batch_size": 7,
        "skip_corrupt": True,
        "predict_critical_lr": True,
    }
    plain, changed = (flatten(SearchSpec.from_flags(**v).trial_spec(OptimizerSpec(), 0)) for v in ({}, values))
    names = {"workload": "workload.data"} | {
        name: f"workload.{name}" for name in ("model", "data_dir", "batch_size", "skip_corrupt")
    }
    for name, value in values.items():
        assert changed[names.get(name, name)] == value != plain[names.get(name, name)]


@pytest.mark.parametrize(
    "name",
    [pytest.param(name) if name == "download" else name for name in sorted(CHANGEABLE_ON_RESUME - {"resume"})],
)
def test_what_may_change_on_resume_changes_no_trial(name: str) -> None:
    """A checkpoint is refused by the training of another digest, and MLflow refuses a parameter that changes."""
    values: dict[str, Any] = {
        "dry_run": True,
        "list": True,
        "download": True,
        "trials": 99,
        "refine_trials": 20,
        "confirm": "all",
        "variants": ("sgdm", "adamw"),
        "max_concurrent": 3,
        "max_failures": 0,
        "time_budget": "1h",
        "address": "auto",
        "confirm_seeds": 9,
        "baseline": "sgdm",
        "system_metrics": True,
        "checkpoint_seconds": 5.0,
        "storage": "sqlite:///x.db",
        "tracking_uri": "http://h",
        "resume_check": False,
    }
    specs: list[TrialSpec] = [
        SearchSpec.from_flags(**changes).trial_spec(OptimizerSpec(), 1)
        for changes in ({"variants": ("sgdm",)}, {"variants": ("sgdm",), name: values[name]})
    ]
    assert digest(specs[0]) == digest(specs[1])


def changed(spec: SearchSpec, **flags: Any) -> SearchSpec:
    return SearchSpec.from_flags(**spec.flags() | flags)


SAVED = SearchSpec.from_flags(name="s", variants=("sgdm", "adamw"), trials=8, refine_trials=4, epochs=10)


@pytest.mark.parametrize(
    ("started", "resumed"),
    [
        (("papers",), ("papers", "sgdm")),
        (("critical", "lpsgdm"), ("papers",)),
        (("lpsgdm", "sgdm", "x:OWN"), ("all", "x:OWN")),
        (("controls", "critical-matched"), tuple(GROUPS["controls"])),
    ],
)
def test_names_and_groups_of_the_same_variants_are_the_same(started: tuple[str, ...], resumed: tuple[str, ...]) -> None:
    saved = dataclasses.replace(SAVED, variants=started)
    refuse_changes(dataclasses.replace(SAVED, variants=resumed), saved)


def test_a_resumed_search_keeps_the_variants_of_a_group() -> None:
    saved = dataclasses.replace(SAVED, variants=("papers", "sgdm"))
    others = tuple(name for name in GROUPS["papers"] if name != "critical")
    with pytest.raises(InvalidInput, match="keeps all its variants, critical, sgdm too"):
        refuse_changes(dataclasses.replace(SAVED, variants=others), saved)


@pytest.mark.parametrize(
    "changes",
    [
        {"trials": 9},
        {"refine_trials": 5},
        {"confirm": "all"},
        {"variants": ("sgdm", "adamw", "critical")},
        {"variants": ("adamw", "sgdm")},
        {"max_concurrent": 1},
        {"max_failures": 0},
        {"time_budget": "1h"},
        {"address": "auto"},
        {"download": True},
        {"resume": "s"},
    ],
)
def test_a_resumed_search_may_grow_and_run_elsewhere(changes: dict[str, Any]) -> None:
    refuse_changes(changed(SAVED, **changes), SAVED)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"trials": 7}, "--trials 7: a resumed search keeps its 8 trials or adds some"),
        ({"variants": ("sgdm", "critical")}, "--variants: a resumed search keeps all its variants, adamw too"),
        ({"epochs": 11}, "--epochs 11: search 's' was started with 10, and a resumed search keeps it"),
        ({"space": ("lr.peak=0.1:0.2",)}, "--space lr.peak=0.1:0.2: "),
        ({"objective": "auc"}, "--objective auc: search 's' was started with time-to-target"),
        ({"targets": (0.9,)}, "--targets 0.9: search 's' was started with 0.9 0.95"),
        ({"round_size": 2}, "--round-size 2: search 's' was started with 4"),
        ({"alpha": 0.1}, "--alpha 0.1: search 's' was started with 0.05"),
        ({"refine_trials": 3}, "--refine-trials 3: a resumed search keeps its 4 or adds some"),
        ({"sampler": "gp"}, "--sampler gp"),
        ({"baseline": "adamw"}, "--baseline adamw"),
        ({"early_stopping": False}, "--early-stopping"),
        ({"workload": "cifar10"}, "--workload cifar10"),
        ({"model": "resnet18"}, "--model resnet18"),
        ({"data_dir": "d"}, "--data-dir /"),
        ({"skip_corrupt": True}, "--skip-corrupt"),
        ({"batch_size": 32}, "--batch-size 32"),
        ({"precision": "float64"}, "--precision float64"),
        ({"compile": True}, "--compile"),
        ({"seed": 1}, "--seed 1"),
        ({"checkpoints": "s3://bucket/x"}, "--checkpoints s3://bucket/x"),
        ({"experiment": "e"}, "--experiment e"),
    ],
)
def test_a_resumed_search_refuses_by_name_what_would_change_results(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        refuse_changes(changed(SAVED, **changes), SAVED)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_field_is_either_changeable_or_refused() -> None:
    assert set(SearchSpec().flags()) >= CHANGEABLE_ON_RESUME


def test_a_search_that_confirms_all_variants_goes_on_doing_so() -> None:
    saved = changed(SAVED, confirm="all")
    refuse_changes(saved, saved)
    with pytest.raises(InvalidInput, match=r"^--confirm left: a resumed search that confirms all"):
        refuse_changes(SAVED, saved)


def test_confirmed_runs_have_fresh_seeds_and_run_to_their_end() -> None:
    spec = SearchSpec.from_flags(seed=3)
    optimizer = OptimizerSpec()
    runs = [spec.confirm_spec(optimizer, k) for k in range(3)]
    pilots = [spec.pilot_spec(optimizer, k) for k in range(3)]
    trials = [spec.trial_spec(optimizer, number) for number in (0, 1, FIRST_REFINE, FIRST_REPEAT)]
    next_search = [dataclasses.replace(spec, seed=4).trial_spec(optimizer, number) for number in range(2)]
    timings = [spec.timing_spec(optimizer, k, 2) for k in range(5)]
    assert len({run.seed for run in [*runs, *pilots, *timings, *trials, *next_search]}) == 17
    assert not any(run.stop_at_target for run in [*runs, *pilots, *timings]) and all(
        trial.stop_at_target for trial in trials
    )
    assert dataclasses.replace(runs[0], seed=0, stop_at_target=True) == dataclasses.replace(trials[0], seed=0)


@pytest.mark.parametrize(
    "changes", [{"early_stopping": False}, {"objective": "accuracy"}, {"objective": "auc"}, {"objective": "pareto"}]
)
def test_a_trial_goes_on_beyond_its_target_where_its_end_is_asked_for(changes: dict[str, Any]) -> None:
    assert SearchSpec().trial_spec(OptimizerSpec(), 0).stop_at_target
    assert not SearchSpec.from_flags(**changes).trial_spec(OptimizerSpec(), 0).stop_at_target


def test_seeds_of_the_largest_search_do_not_meet() -> None:
    largest = SearchSpec.from_flags(trials=FIRST_REFINE - 1, refine_trials=FIRST_REPEAT - FIRST_REFINE - 1)
    assert largest.trials <= FIRST_REFINE < FIRST_REFINE + largest.refine_trials <= FIRST_REPEAT
    assert FIRST_REPEAT + NUM_REPEATS < FIRST_FRESH < FIRST_PILOT < 1_000_003


@pytest.mark.parametrize(("seeds", "default"), [(0, 0), (1, 1), (6, 3), (7, 4)])
def test_the_default_point_has_half_as_many_seeds(seeds: int, default: int) -> None:
    spec = SearchSpec(confirm_seeds=seeds)
    assert (spec.num_seeds("best"), spec.num_seeds("default")) == (seeds, default)


def test_a_resumed_search_loses_no_seed() -> None:
    saved = SearchSpec(name="s", confirm_seeds=6)
    refuse_changes(dataclasses.replace(saved, confirm_seeds=12), saved)
    with pytest.raises(InvalidInput, match=r"--confirm-seeds 3: a resumed search keeps its 6"):
        refuse_changes(dataclasses.replace(saved, confirm_seeds=3), saved)


def test_a_resumed_search_keeps_what_is_pruned() -> None:
    saved = SearchSpec.from_flags(name="s", predict_critical_lr=True)
    for changes in ({"prune_above_critical": 2.0}, {"predict_critical_lr": False}):
        with pytest.raises(InvalidInput, match="and a resumed search keeps it"):
            refuse_changes(changed(saved, **changes), saved)


def test_what_lies_far_above_the_predicted_rate_is_what_would_be_pruned() -> None:
    assert SearchSpec().far_above_critical == FAR_ABOVE_CRITICAL
    assert SearchSpec.from_flags(predict_critical_lr=True, prune_above_critical=0.5).far_above_critical == 0.5


def test_every_leaf_of_a_training_is_a_flag_once_or_is_set_by_the_search() -> None:
    leaves = [leaf for leaf in flatten(TrialSpec()) if not leaf.startswith("optimizer.")]
    of_flags = [".".join(path[1:]) for path in LEAVES.values() if path[0] == "training"]
    assert "targets" in LEAVES and "stop_at_target" not in LEAVES
    assert sorted([*of_flags, *SET_BY_SEARCH]) == sorted(leaves)
    own = [item.name for item in dataclasses.fields(SearchSpec) if item.name != "training"]
    assert len(LEAVES) == len(own) + len(of_flags), "two flags of one name"


def test_flags_make_the_spec_again() -> None:
    flags = {"workload": "diagonal", "targets": [0.5], "trials": 5, "checkpoints": "s3://bucket/x", "epochs": 2}
    spec = SearchSpec.from_flags(**flags)
    assert (spec.training.workload.model, spec.training.targets) == ("diagonal", (0.5,))
    assert SearchSpec.from_flags(**spec.flags()) == spec
    training = TrialSpec(workload=WorkloadSpec(data="diagonal"), targets=(0.5,), epochs=2)
    assert SearchSpec(training=training, trials=5, checkpoints="s3://bucket/x") == spec


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"epoch": 3}, "unknown flag 'epoch': did you mean 'epochs'?"),
        ({"epochs": "3"}, "--epochs 3: must be int"),
        ({"workload": 3}, "--workload 3: must be str"),
        ({"batch_size": 0}, "--batch-size 0: must be at least 1"),
    ],
)
def test_flags_from_python_are_refused_by_name(flags: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInput, match=f"^{re.escape(says)}"):
        SearchSpec.from_flags(**flags)


@pytest.mark.parametrize("changes", [{"seed": 3}, {"max_loss": 5.0}, {"optimizer": OptimizerSpec(rule="adamw")}])
def test_what_the_search_sets_is_not_given(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=r"^training\..*: the search sets it"):
        SearchSpec(training=TrialSpec(**changes))
