"""The variants in order: by their confirmed runs where there are any, else by their trials."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from search_spaces import Variant
from tests.report.racing import end_rounds
from tuner.core.metrics import EpochMetrics, FinalScore
from tuner.core.search_spec import SearchSpec
from tuner.core.serialization import with_settings
from tuner.core.trial_spec import OptimizerSpec
from tuner.race import evidence
from tuner.report.comparison import Comparison, compare
from tuner.report.leaderboard import best_settings, exploration, leaderboard, metrics_and_tags, verdict
from tuner.study.results import Search
from tuner.study.trial_record import TrialRecord

Curves = Mapping[str, Sequence[Sequence[float]]]
Made = Callable[..., Search]
NOT_RUN: Sequence[float] = ()
CURVES: Curves = {
    # Variant -> the accuracies of its trials, negative where one diverged; fewer than three epochs: it was stopped.
    "slow": [[0.1, 0.2, 0.6], [0.1, 0.2, 0.9]],
    "fast": [[0.1, 0.7], [0.3, 0.85, 0.8]],
    "wild": [[0.99, -1.0], NOT_RUN],
}


@pytest.fixture
def made(toy: Callable[..., Variant], epoch: Callable[..., EpochMetrics]) -> Made:
    """A search whose trials had these curves, and its confirmed runs those; ten gradient evaluations an epoch."""

    def make(curves: Curves = CURVES, confirmed: Curves | None = None, **changes: Any) -> Search:
        num_seeds = max((len(runs) for runs in (confirmed or {}).values()), default=0)
        values: dict[str, Any] = {"name": "x", "variants": tuple(curves), "trials": 2, "round_size": 1, "epochs": 3}
        spec = SearchSpec.from_flags(**{**values, "targets": (0.5, 0.84), "confirm_seeds": num_seeds, **changes})
        search = Search(spec, "id", tuple(toy(name) for name in curves), Path("x"), {})

        def add(record: TrialRecord, accuracies: Sequence[float]) -> None:
            record.history = [
                epoch(number, max(accuracy, 0.0), budget=10 * spec.training.epochs, diverged=accuracy < 0)
                for number, accuracy in enumerate(accuracies, start=1)
            ]
            last = record.history[-1] if record.history else None
            whole = "finished" if len(accuracies) == spec.training.epochs else "stopped"
            record.status = "failed" if last is None else "diverged" if last.diverged else whole
            search.records[record.name] = record

        for name, trials in curves.items():
            for number, accuracies in enumerate(trials):
                point = {"lr.peak": 0.1, "momentum.value": 0.5 + number / 10}
                optimizer = with_settings(OptimizerSpec(), {"rule": "sgd", **point})
                # Of the refinement, so that the race has no round unless a test adds some.
                trial = spec.trial_spec(optimizer, number)
                add(
                    TrialRecord(f"{name}-{number:02d}", name, number, trial, "refine", place={"index": number}),
                    accuracies,
                )
        for name, runs in (confirmed or {}).items():
            for k, (wanted, accuracies) in enumerate(zip(search.wanted(name, "best"), runs, strict=False), start=1):
                record = TrialRecord(f"{name}/confirm-{k}", name, k, wanted, "confirm")
                add(record, accuracies)
                if record.status == "finished":
                    record.test = FinalScore(0.1, record.history[-1].validation_accuracy - 0.01, "data")
        return search

    return make


def column(search: Search, name: str) -> dict[str, str]:
    """Variant -> its cell, in the leaderboard."""
    table = leaderboard(search)
    return {row[0]: row[table.columns.index(name)] for row in table.rows}


def test_of_trials_the_best_comes_first_and_who_finished_nothing_last(made: Made) -> None:
    table = leaderboard(made())
    assert table == exploration(made()) and table.name == "exploration"
    assert table.columns == (
        "variant", "best accuracy", "to 50%", "to 84%", "stopped", "diverged", "failed", "best trial"
    )  # fmt: skip
    # All of the wild variant's trials diverged or failed, after one had been at the targets.
    assert table.rows == (
        # From 30% to 85% the targets of 50% and 84% are crossed after 4/11 and 54/55 of the second epoch; from 20% to
        # 90% after 3/7 and 64/70 of the third one.
        ("fast", "0.8500", "2 / 14 / 0.7", "2 / 20 / 1.0", "1", "0", "0", "fast-01"),
        ("slow", "0.9000", "3 / 24 / 1.2", "3 / 29 / 1.5", "0", "0", "0", "slow-01"),
        ("wild", "0.9900", "-", "-", "0", "1", "1", "-"),
    )


def test_the_objective_decides(made: Made) -> None:
    rows = exploration(made(objective="accuracy")).rows
    assert [(row[0], row[-1]) for row in rows] == [("slow", "slow-01"), ("fast", "fast-01"), ("wild", "-")]


def test_equally_fast_variants_are_ordered_by_accuracy(made: Made) -> None:
    rows = exploration(made({"one": [[0.1, 0.85, 0.86]], "two": [[0.1, 0.85, 0.97]]}, trials=1)).rows
    assert [row[0] for row in rows] == ["two", "one"]


@pytest.mark.parametrize("curves", [{"wild": [[-1.0], NOT_RUN]}, {"wild": []}])
def test_a_search_in_which_nothing_finished_has_its_table(made: Made, curves: Curves) -> None:
    search = made(curves)
    ((variant, accuracy, *_, best),) = leaderboard(search).rows
    assert (variant, best) == ("wild", "-") and accuracy in ("0.0000", "-")
    assert best_settings(search, "wild") == {}
    metrics, tags = metrics_and_tags(search)["wild"]
    assert metrics.pop("leaderboard/rank") == 1 and all(map(math.isnan, metrics.values()))
    assert (tags["verdict"], tags["cost"], tags["race"]) == ("baseline", "-", "-")


def test_the_winners_searched_settings(made: Made) -> None:
    assert best_settings(made(), "fast") == {"lr.peak": 0.1, "momentum.value": 0.6}


def confirmed_in(*epochs: int, length: int = 12) -> list[list[float]]:
    """Confirmed runs that reach 84% at these epochs, and 50% an epoch earlier; 0: never.  Nothing is interpolated."""
    curves = []
    for reached in epochs:
        ends = [0.5 if not reached else 0.84] * (length - max(reached - 1, 0))
        curves.append([0.1] * max(reached - 2, 0) + [0.5] * (reached > 1) + ends)
    return [curve[:length] for curve in curves]


OURS, THEIRS = (4, 4, 5, 4, 6, 4), (8, 9, 9, 7, 11, 10)


@pytest.fixture
def compared(made: Made) -> Search:
    """Of the trials the base is the best; confirmed, ours takes half its cost and lame misses in half its runs."""
    trials: Curves = {
        "base": [[0.1, 0.9]],
        "ours": [[0.1, 0.1, 0.9]],
        "lame": [[0.1, 0.1, 0.1, 0.9]],
        "none": [NOT_RUN],
    }
    whole = {name: [[*curve, *[0.9] * (12 - len(curve))] for curve in runs if curve] for name, runs in trials.items()}
    confirmed = {
        "base": confirmed_in(*THEIRS),
        "ours": confirmed_in(*OURS),
        "lame": confirmed_in(0, 9, 0, 0, 9, 9),
    }
    return made(whole, confirmed, epochs=12, trials=20, baseline="base", confirm="all")


def test_confirmed_runs_decide_the_order(compared: Search) -> None:
    assert [row[0] for row in exploration(compared).rows] == ["base", "ours", "lame", "none"]
    assert [row[0] for row in leaderboard(compared).rows] == ["ours", "base", "lame", "none"]
    assert column(compared, "reached") == {"ours": "6/6", "base": "6/6", "lame": "3/6", "none": "-"}


def test_costs_and_ratios_are_those_computed_by_hand(compared: Search) -> None:
    # Of six runs the smallest and the largest: the median is between them but once in 32.
    cells = {"ours": "40 [40, 60]", "base": "90 [70, 110]", "lame": "not reached [≥90]", "none": "-"}
    assert column(compared, "to 84%") == cells
    assert column(compared, "to 50%")["ours"] == "30 [30, 50]"
    assert ", at 97% unless" in leaderboard(compared).note
    logs = np.log(np.array(OURS) / np.array(THEIRS))
    half = stats.t.ppf(0.975, 5) * logs.std(ddof=1) / math.sqrt(6)
    expected = " ".join(f"{math.exp(x):.3g}" for x in (logs.mean(), logs.mean() - half, logs.mean() + half))
    assert column(compared, "ratio to base")["ours"] == "{} [{}, {}]".format(*expected.split())
    assert column(compared, "test accuracy")["ours"] == "83.0% (83.0–83.0)"


def test_verdicts_tell_settings_from_variants(compared: Search) -> None:
    made = {name: verdict(compared, name, found) for name, found in comparisons(compared).items()}
    assert made == {
        "ours": "settings faster",
        "base": "baseline",
        "lame": "undecided",
        "none": "nothing to compare",
    }
    end_rounds(compared, {"base": [60.0] * 12, "ours": [30.0] * 12, "lame": [40.0] * 12, "none": [70.0] * 12})
    made = {name: verdict(compared, name, found) for name, found in comparisons(compared).items()}
    assert made["ours"] == "faster" and made["none"] == "nothing to compare"


def comparisons(search: Search) -> dict[str, Comparison | None]:
    found = {made.variant: made for made in compare(search)}
    return {variant.name: found.get(variant.name) for variant in search.variants}


def test_who_is_left_in_the_race_comes_first_whatever_was_confirmed(compared: Search) -> None:
    end_rounds(compared, {"base": [60.0] * 12, "ours": [60.0] * 12, "lame": [30.0] * 12, "none": [60.0] * 12})
    assert compared.race.left == ["lame"]
    table = leaderboard(compared)
    assert table.columns[:3] == ("variant", "race", "won against base")
    assert [row[:3] for row in table.rows] == [
        ("lame", "fastest", "8 of 8"),
        ("ours", "out, round 8", "0 of 0"),
        ("base", "out, round 8", "-"),
        ("none", "out, round 8", "0 of 0"),
    ]
    assert "each tries 1 random setting in a round" in table.note
    metrics, tags = metrics_and_tags(compared)["lame"]
    assert (metrics["leaderboard/rank"], metrics["leaderboard/rounds_won"], metrics["leaderboard/rounds_lost"]) == (
        1,
        8,
        0,
    )
    assert metrics["leaderboard/evidence"] == pytest.approx(evidence(8, 0))
    assert (tags["race"], tags["verdict"]) == ("fastest", "faster")


def test_a_race_of_which_nothing_is_confirmed_has_no_note_on_seeds(made: Made) -> None:
    search = end_rounds(made({"base": [[0.9] * 3], "ours": [[0.9] * 3]}), {"base": [60.0], "ours": [30.0]})
    table = leaderboard(search)
    assert table.name == "leaderboard" and [row[1] for row in table.rows] == ["left", "left"]
    assert "fresh seeds" not in table.note and "rounds" in table.note.lower()


def test_an_accuracy_has_a_best_variant(made: Made) -> None:
    search = made({"base": [[0.9] * 3], "ours": [[0.9] * 3]}, objective="accuracy", trials=9)
    end_rounds(search, {"base": [-0.5] * 9, "ours": [-0.6] * 9})
    assert column(search, "race") == {"ours": "best", "base": "out, round 7"}
    assert metrics_and_tags(search)["ours"][1]["verdict"] == "better"


def test_a_level_that_is_not_the_usual_one_is_said(made: Made) -> None:
    confirmed = {"base": confirmed_in(5, 6, 7, 8, 9, 9), "ours": confirmed_in(4, 5, 6)}
    search = made({name: [[0.9] * 12] for name in confirmed}, confirmed, epochs=12, trials=1, baseline="base")
    assert column(search, "to 84%") == {"base": "75 [50, 90]", "ours": "50 [40, 60] (75%)"}
    cells = column(search, "to 84%")
    assert cells["ours"] == "50 [40, 60] (75%)" and "(" not in cells["base"]


def test_the_lines_of_variants_that_got_there_fit_120_columns(compared: Search) -> None:
    table = leaderboard(compared)
    columns = zip(table.columns, *table.rows[:2], strict=True)
    # As rich draws it, a head in several lines if need be.
    widths = [max(*map(len, head.split()), *map(len, cells)) for head, *cells in columns]
    assert table.rows[1][0] == "base" and sum(widths) + 3 * len(widths) + 1 <= 120


def test_metrics_are_those_of_the_table_and_a_miss_is_infinite(compared: Search) -> None:
    lines = metrics_and_tags(compared)
    assert list(lines) == [row[0] for row in leaderboard(compared).rows]
    assert [metrics["leaderboard/rank"] for metrics, _ in lines.values()] == [1, 2, 3, 4]
    ours, tags = lines["ours"]
    assert (ours["leaderboard/gradient_evaluations"], ours["leaderboard/epochs"]) == (40, 4)
    assert ours["leaderboard/seconds"] == 2.0 and ours["leaderboard/reached"] == 1
    ratios = np.array(OURS) / np.array(THEIRS)
    assert ours["leaderboard/ratio"] == pytest.approx(stats.gmean(ratios))
    assert ours["leaderboard/ratio_low"] < ours["leaderboard/ratio"] < ours["leaderboard/ratio_high"] < 1
    assert ours["test/accuracy"] == pytest.approx(0.83)
    assert ours["leaderboard/rounds_won"] == ours["leaderboard/rounds_lost"] == 0
    wanted = {"verdict": "settings faster", "race": "-", "cost": "40 [40, 60] gradient evaluations (97%)"}
    assert tags == {**wanted, "target": "84%", "baseline": "base"}
    assert lines["lame"][0]["leaderboard/gradient_evaluations"] == math.inf
    assert lines["lame"][0]["leaderboard/reached"] == 0.5
    assert math.isnan(lines["none"][0]["leaderboard/gradient_evaluations"])
    assert all(set(metrics) == set(ours) and set(said) == set(tags) for metrics, said in lines.values())


def test_without_targets_yet_there_are_the_trials_alone(made: Made) -> None:
    search = made({"base": [], "ours": []}, targets="auto")
    assert search.spec.training.targets == ()
    assert leaderboard(search).name == "exploration"
    assert {tags["target"] for _, tags in metrics_and_tags(search).values()} == {"-"}
