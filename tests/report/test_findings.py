"""Where trainings diverge, how steady they are, best values at an edge, what matters: against known truths."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import create_trial

from benchmarks.simulated_search import Truth, simulate
from search_spaces import SPACES, Variant
from tuner.core.metrics import EpochMetrics
from tuner.core.search_spec import SearchSpec
from tuner.core.serialization import with_settings
from tuner.core.trial_spec import OptimizerSpec
from tuner.core.variants import from_unit, resolve_variants
from tuner.report.findings import FEWEST, divergence, edges, importance, importances, stability
from tuner.study.results import Search
from tuner.study.trial_record import TrialRecord

Epoch = Callable[..., EpochMetrics]
OWN = Variant(
    name="own",
    idea="whole numbers and steps",
    source="ours",
    fixed={"rule": "sgd"},
    searched={
        "order.window": IntDistribution(4, 64, log=True),
        "order.interval": IntDistribution(2, 6),
        "lr.end": FloatDistribution(0.25, 0.75, step=0.25),
        "lr.peak": FloatDistribution(0.1, 0.1),
    },
    default={"order.window": 8, "order.interval": 3, "lr.end": 0.5, "lr.peak": 0.1},
)


def trials(variant: str, *settings: dict[str, Any], statuses: Sequence[str] = (), **changes: Any) -> Search:
    """A search of one variant with these trials, none of which has an epoch."""
    spec = SearchSpec.from_flags(**{"name": "x", "variants": (variant,), **changes})
    chosen = resolve_variants(spec.variants, spec.space)
    search = Search(spec, "id", chosen, Path("x"), {})
    for number, changed in enumerate(settings):
        point = {**chosen[0].default_settings(), **changed}
        record = TrialRecord(
            f"t{number}",
            chosen[0].name,
            number,
            spec.trial_spec(with_settings(OptimizerSpec(), point), number),
            status=statuses[number] if statuses else "finished",
            place={"round": number, "slot": 0},
        )
        search.records[record.name] = record
    return search


@pytest.fixture
def best_is(epoch: Epoch) -> Callable[..., Search]:
    """A search of one variant whose only trial, which finished, has these settings."""

    def make(variant: str, settings: dict[str, Any], **changes: Any) -> Search:
        search = trials(variant, settings, **changes)
        search.records["t0"].history = [epoch(1, 0.5)]
        return search

    return make


def test_divergence_is_counted_by_phase_without_what_failed() -> None:
    lrs = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 0.9, 0.3, 1.0)
    statuses = ("finished", "stopped", "diverged", "finished", "diverged", "diverged", "failed", "finished", "running")
    search = trials("sgdm", *({"lr.peak": lr} for lr in lrs), statuses=statuses)
    for name in ("t5", "t7"):
        search.records[name].phase = "refine"
    section = divergence(search)
    (row,) = section.tables[0].rows
    assert row[0:2] == ("sgdm", "2 of 5") and row[3:] == ("1 of 2", "0.1 to 0.8", "0.02 to 0.3")
    # Clopper and Pearson's interval of 2 in 5, from their tables
    assert row[2] == "40% [5%, 85%] (95%)"
    assert section.sentences == (
        "sgdm: 2 of 2 trials above lr.peak 0.3 diverged, 0 of 2 trials below lr.peak 0.1 diverged, "
        "1 of 3 trials from 0.1 to 0.3 diverged.",
    )


def test_the_limit_of_a_simulated_learning_rate_is_found() -> None:
    """It diverges from about .1 on, half of the range of sgdm: .01 to 1."""
    spec = SearchSpec(name="x", variants=("sgdm", "adamw"), trials=32, alpha=0, refine_trials=16, early_stopping=False)
    section = divergence(simulate(spec, {"sgdm": Truth(lr_limit=0.1), "adamw": Truth()}))
    pattern = r"sgdm: (\d+) of \1 trials above lr.peak (\S+) diverged, 0 of \d+ trials below lr.peak (\S+) diverged"
    match = re.match(pattern, section.sentences[0])
    assert match and 0.03 < float(match[3]) <= 0.1 < float(match[2]) < 0.25
    assert ". In random trials that diverged, lr.peak is larger (p " in section.sentences[0]
    assert section.sentences[1] == "No trial of adamw diverged."
    low, high = map(int, re.findall(r"(\d+)%[,\]]", section.tables[0].rows[0][2]))
    assert low < 50 < high and section.tables[0].rows[0][1].endswith(" of 32")


def test_a_setting_that_divergence_hangs_on_is_named_and_chance_is_not() -> None:
    generator = np.random.default_rng(0)
    lrs, momenta = generator.uniform(0.1, 0.5, 24), generator.uniform(0.8, 0.98, 24)
    points = [{"lr.peak": lr, "momentum.value": m} for lr, m in zip(lrs.tolist(), momenta.tolist(), strict=True)]
    fell = ["diverged" if m < 0.85 else "finished" for m in momenta]
    (sentence,) = divergence(trials("sgdm", *points, statuses=fell)).sentences
    assert "diverged, momentum.value is smaller (p " in sentence and "lr.peak is" not in sentence
    (sentence,) = divergence(trials("sgdm", *points, statuses=["diverged", "finished"] * 12)).sentences
    assert "n random trials" not in sentence
    few = [{"lr.peak": lr} for lr in (0.02, 0.03, 0.05, 0.08, 0.2, 0.3, 0.5, 0.8)]
    (sentence,) = divergence(trials("sgdm", *few, statuses=["finished"] * 4 + ["diverged"] * 4)).sentences
    # 4 of 4 above 4 of 4 has p = 2/70, which is too much for one setting of four
    assert "n random trials" not in sentence


def test_a_best_value_at_an_edge_comes_with_a_flag_that_widens_it() -> None:
    """The best learning rate lies below the range of adamw, and amid that of sgdm."""
    spec = SearchSpec(name="x", variants=("sgdm", "adamw"), trials=40, refine_trials=16, confirm="all", confirm_seeds=0)
    search = simulate(spec, {"sgdm": Truth(width=0.5), "adamw": Truth(lr_best=1e-5)})
    rows = {row[:2]: row for row in edges(search).tables[0].rows}
    assert ("sgdm", "lr.peak") not in rows
    row = rows["adamw", "lr.peak"]
    assert row[3:] == ("0.0003:0.03:log", "lower", "--space adamw:lr.peak=3e-05:0.03:log")
    widened = resolve_variants(spec.variants, [row[5].removeprefix("--space ")])[1].searched["lr.peak"]
    assert isinstance(widened, FloatDistribution) and (widened.low, widened.high, widened.log) == (3e-5, 0.03, True)


@pytest.mark.parametrize(
    ("value", "end"),
    [(0.0125, "lower"), (0.0127, None), (0.1, None), (0.79, None), (0.8, "upper")],
)
def test_an_edge_is_a_twentieth_of_the_logarithmic_range(
    best_is: Callable[..., Search], value: float, end: str
) -> None:
    """Of .01 to 1 that is .01 to .01259, and .794 to 1."""
    section = edges(best_is("sgdm", {"lr.peak": value, "momentum.value": 0.9}))
    ends = [row[4] for table in section.tables for row in table.rows if row[1] == "lr.peak"]
    assert ends == ([end] if end else [])
    assert f"{len(ends)} of 4 searched numbers" in section.sentences[0]


def test_where_a_setting_ends_a_range_is_widened_less_or_not_at_all(best_is: Callable[..., Search]) -> None:
    section = edges(best_is("sgdm", {"lr.peak": 0.99, "momentum.value": 0.979, "lr.warmup": 0.001}))
    advice = {row[1]: row[5] for row in section.tables[0].rows}
    assert advice == {
        "lr.peak": "--space sgdm:lr.peak=0.01:10:log",
        "momentum.value": "--space sgdm:momentum.value=0.8:0.99125:linear",
        "lr.warmup": "none, the setting ends there (lr.warmup = -0.0125: must be in [0, 1))",
    }
    for name in ("lr.peak", "momentum.value"):
        resolve_variants(("sgdm",), [advice[name].removeprefix("--space ")])


def test_flags_follow_ranges_that_were_changed(best_is: Callable[..., Search]) -> None:
    search = best_is("sgdm", {"lr.peak": 0.2}, space=("sgdm:lr.peak=0.1:0.2:linear",))
    (row,) = edges(search).tables[0].rows
    assert row[3:] == ("0.1:0.2", "upper", "--space sgdm:lr.peak=0.1:0.25:linear")
    (widened,) = resolve_variants(("sgdm",), ["sgdm:lr.peak=0.1:0.2:log", row[5].removeprefix("--space ")])
    assert widened.searched["lr.peak"] == FloatDistribution(0.1, 0.25)


def test_a_range_may_depend_on_another_that_was_changed(best_is: Callable[..., Search]) -> None:
    """The first p is not below the last, which goes up to 3 unless it is changed."""
    (row,) = (row for row in edges(best_is("lpsgdm", {"norm.p_max": 3.01})).tables[0].rows if row[1] == "norm.p_max")
    assert row[5].startswith("none, the setting ends there (norm.p_end = ")
    search = best_is("lpsgdm", {"norm.p_max": 3.01}, space=("norm.p_end=2:2.2",))
    (row,) = (row for row in edges(search).tables[0].rows if row[1] == "norm.p_max")
    assert row[5] == "--space lpsgdm:norm.p_max=2.24968:20:log"


def test_settings_that_do_not_exist_in_the_best_trial_are_skipped(best_is: Callable[..., Search]) -> None:
    edge = {"momentum.switch_fraction": 0.9, "momentum.switch_accuracy": 0.93}
    for switch, active in [("fraction", ["momentum.switch_fraction"]), ("accuracy", ["momentum.switch_accuracy"])]:
        rows = edges(best_is("hybrid", {**edge, "momentum.switch": switch})).tables[0].rows
        assert [row[1] for row in rows if row[1].startswith("momentum.switch")] == active


def test_whole_numbers_and_steps_are_at_an_edge_only_on_it(best_is: Callable[..., Search]) -> None:
    name = "tests.report.test_findings:OWN"
    near = {"order.window": 5, "order.interval": 3, "lr.end": 0.5}
    section = edges(best_is(name, near))
    assert not section.tables and "in 0 of 3 searched numbers." in section.sentences[0]
    (table,) = edges(best_is(name, {"order.window": 64, "order.interval": 2, "lr.end": 0.25})).tables
    assert {row[1]: row[5] for row in table.rows} == {
        "order.window": "--space own:order.window=4:640:log",
        # half the range would be 0, and an interval is at least 1
        "order.interval": "--space own:order.interval=1:6:linear",
        "lr.end": "--space own:lr.end=0:0.75:linear",
    }


def test_stability_is_of_the_confirmed_runs_that_finished(best_is: Callable[..., Search], epoch: Epoch) -> None:
    search = best_is("sgdm", {}, confirm_seeds=3)
    curves = ([0.1, 0.5, 0.9, 0.8], [0.1, 0.5, 0.9, 0.9], [0.1, 0.2])
    losses = ([2.0, 1.0, 1.25, 0.5], [2.0, 1.0, 0.5, 0.25], [2.0, math.inf])
    for wanted, curve, loss in zip(search.wanted("sgdm", "best"), curves, losses, strict=True):
        run = TrialRecord(f"sgdm/{wanted.seed}", "sgdm", 1, wanted, "confirm", "finished")
        run.history = [epoch(i, a, train_loss=x) for i, (a, x) in enumerate(zip(curve, loss, strict=True), start=1)]
        run.status = "diverged" if math.inf in loss else "finished"
        search.records[run.name] = run
    section = stability(search)
    # deviation of .9 and .8: .1/sqrt 2
    row = ("sgdm", "3", "1", "0.0354 [0, 0.0707]", "0.85 [0.8, 0.9]", "0.125 [0, 0.25]")
    assert section.tables[0].rows == (row,) and len(section.sentences) == 1
    for run in search.confirmed("sgdm").values():
        run.status = "running"
    section = stability(search)
    assert section.tables[0].rows[0][:5] == ("sgdm", "1", "0", "0 [0, 0]", "0.5 [0.5, 0.5]")
    assert section.sentences[1] == "Variants without confirmed runs show their trials that finished: sgdm."


def studied(variant: str, num_trials: int, value: Callable[[dict[str, Any]], float], **changes: Any) -> Search:
    """A search whose study has uniform trials of which the objective is a function of the settings."""
    search = trials(variant, **changes)
    chosen, generator = SPACES[variant], np.random.default_rng(0)
    study = optuna.create_study()
    for _ in range(num_trials):
        drawn = {
            name: from_unit(d, u) for (name, d), u in zip(chosen.searched.items(), generator.random(99), strict=False)
        }
        params = {name: drawn[name] for name in drawn if chosen.active(name, drawn)}
        distributions = {name: chosen.searched[name] for name in params}
        study.add_trial(create_trial(params=params, distributions=distributions, value=value(params)))
    search.studies = {variant: study}
    return search


def by_lr(settings: dict[str, Any]) -> float:
    return abs(math.log10(settings["lr.peak"]) + 1.0)


def test_the_setting_that_matters_is_the_most_important(recwarn: pytest.WarningsRecorder) -> None:
    search = studied("sgdm", 100, by_lr)
    found = importances(search)["sgdm"]
    assert set(found) == set(SPACES["sgdm"].searched) and next(iter(found)) == "lr.peak"
    assert found["lr.peak"] > 0.5 and sum(found.values()) == pytest.approx(1)
    section = importance(search)
    assert section.sentences == ("Settings that matter more than chance: sgdm: lr.peak.",)
    assert [row[3] for row in section.tables[0].rows] == ["yes", "no", "no", "no", "no"]
    assert not recwarn


def test_a_larger_accuracy_is_better() -> None:
    """The largest learning rates have the largest accuracy; the smallest ones would be as important were it turned."""
    search = studied("sgdm", 100, lambda s: 10.0 if s["lr.peak"] > 0.5 else -s["momentum.value"], objective="accuracy")
    assert next(iter(importances(search)["sgdm"])) == "lr.peak"
    search.spec = SearchSpec(name="x", variants=("sgdm",), objective="auc")
    assert next(iter(importances(search)["sgdm"])) == "momentum.value"


def test_repeats_do_not_count_twice() -> None:
    """Twenty repeats of the best trial would make each of its settings important."""
    search = studied("sgdm", 40, by_lr)
    before = importances(search)
    study = search.studies["sgdm"]
    for repeat in range(20):
        repeated = create_trial(
            params=study.best_trial.params, distributions=study.best_trial.distributions, value=study.best_value,
            user_attrs={"repeats": study.best_trial.number, "repeat": repeat},
        )  # fmt: skip
        study.add_trial(repeated)
    assert importances(search) == before


def test_conditional_settings_are_weighed_too() -> None:
    assert set(importances(studied("hybrid", 60, by_lr))["hybrid"]) == set(SPACES["hybrid"].searched)


def test_an_objective_that_is_chance_makes_nothing_important() -> None:
    generator = np.random.default_rng(1)
    section = importance(studied("sgdm", 40, lambda s: float(generator.random())))
    assert section.sentences == ("Settings that matter more than chance: none.",)


@pytest.mark.parametrize("num_trials", [0, 1, 2, FEWEST - 1])
def test_too_few_trials_say_nothing_of_importance(num_trials: int) -> None:
    search = studied("sgdm", num_trials, by_lr)
    assert importances(search) == {} and not importance(search).tables
    assert importance(search).sentences[0].startswith("The importance is not known for sgdm: it needs 11 trials")


def test_equal_objectives_and_no_study_say_nothing_of_importance() -> None:
    search = studied("sgdm", 40, lambda settings: 1.0)
    assert importances(search) == {}
    search.studies = {}
    assert importances(search) == {}
    assert importance(search).sentences[0].startswith("The importance is not known for sgdm")
