"""Both costs in a report: adamw needs half the gradient evaluations of sgdm, and each takes four times as long."""

from __future__ import annotations

import dataclasses
import math
from functools import cache
from typing import get_args

import pytest

from benchmarks.simulated_search import Truth, simulate
from tests.report.racing import raced
from tuner.core.search_spec import Cost, SearchSpec
from tuner.report.claims import claims, tuned_against_default
from tuner.report.claims import verdict as verdicts
from tuner.report.comparison import compare, ranking, times
from tuner.report.cost_order import both_costs, order
from tuner.report.costs import bounded_costs, cost, seconds_per_evaluation, timing_figures
from tuner.report.curves import tuning_curves
from tuner.report.leaderboard import leaderboard, metrics_and_tags
from tuner.report.outline import report_of
from tuner.report.scatter import learning_rates, times_to_target
from tuner.report.verdict import answer
from tuner.study.results import Search

SLOW, DEAR = Truth(), Truth(speed=1.2, seconds_per_step=0.1)


@cache
def made(cost: Cost, adamw: Truth = DEAR, alpha: float = 0.05) -> Search:
    """A search of eight rounds in which every variant is confirmed."""
    spec = SearchSpec.from_flags(
        name="made", variants=("sgdm", "adamw"), trials=16, round_size=2, alpha=alpha, confirm="all", refine_trials=1,
        cost=cost,
    )  # fmt: skip
    return simulate(spec, {"sgdm": SLOW, "adamw": adamw})


def test_a_search_by_evaluations_shows_seconds_too_and_where_they_change_the_order() -> None:
    search = made("gradient-evaluations")
    assert ranking(search) == ["adamw", "sgdm"]
    (said,) = order(search)
    assert said == (
        "The order by median time to 95% depends on the cost: by gradient evaluations it is adamw, sgdm; by seconds of "
        "training, which were measured beside other work, it is sgdm, adamw."
    )
    result, *_ = report_of(search).sections
    assert said not in result.sentences, "they were not measured alone"
    table = both_costs(search)
    assert table and table.note.startswith(said)
    assert table in next(s for s in report_of(search).sections if s.title == "Time to target").tables
    rows = {row[0]: row for row in table.rows}
    num = len([record for record in search.trainings() if record.variant == "adamw"])
    assert rows["adamw"][3] == f"beside other work, median of {num}" and not search.timings()
    assert float(rows["adamw"][1]) == pytest.approx(0.1, rel=0.02)
    assert float(rows["adamw"][2]) == pytest.approx(4, rel=0.05) and rows["sgdm"][2] == "1"


def test_a_search_by_seconds_compares_by_seconds_and_says_so() -> None:
    search = made("seconds")
    assert search.race.left == ["sgdm"] == ranking(search)[:1] and search.race.wins["sgdm", "adamw"] >= 7
    (unit,) = [sentence for sentence in answer(search) if sentence.startswith("Fast is by seconds of training")]
    figures = [timing_figures(search, name) for name in search.seconds]
    assert list(map(len, figures)) == [3, 3]
    apart = max(max(some) / min(some) for some in figures) - 1
    assert 0 < apart < 0.05 and unit.endswith(f"two timings of one variant differ by up to {apart:.1%}.")
    (said,) = order(search)
    assert said.endswith("by gradient evaluations it is adamw, sgdm; by seconds of training, it is sgdm, adamw.")
    assert said in report_of(search).sections[0].sentences
    table = both_costs(search)
    assert table and {row[3].partition(" (")[0] for row in table.rows} == {"alone, median of 3"}
    board = leaderboard(search)
    assert "seconds to 95%" in board.columns and "median seconds of training" in board.note
    (one,) = compare(search)
    (other,) = compare(search, "gradient_evaluations")
    assert one.unit == "seconds" and one.settings and other.settings and other.settings.estimate < 1
    assert one.settings.estimate == pytest.approx(4 * other.settings.estimate, rel=0.05)
    said = " ".join([*verdicts(search).sentences, *tuned_against_default(search).sentences, *claims(search).sentences])
    assert "times sgdm's seconds of training" in said and "gradient evaluations" not in said
    metrics, tags = metrics_and_tags(search)["adamw"]
    assert tags["cost"].endswith("%)") and "seconds" in tags["cost"]
    assert metrics["leaderboard/seconds"] == pytest.approx(
        metrics["leaderboard/gradient_evaluations"] * (search.seconds["adamw"] or math.nan)
    )
    limits = next(section for section in report_of(search).sections if section.title == "Limitations")
    assert any(sentence.startswith("Seconds per gradient evaluation") for sentence in limits.sentences)


def test_variants_that_are_left_are_ranked_by_the_cost_of_the_search() -> None:
    by_evaluations, by_seconds = (made(cost, alpha=0.0) for cost in get_args(Cost))
    assert len(by_evaluations.race.left) == len(by_seconds.race.left) == 2
    assert ranking(by_evaluations) == ranking(by_seconds)[::-1] == ["adamw", "sgdm"]


def test_pictures_of_a_search_by_seconds_have_seconds() -> None:
    search = made("seconds")
    for draw in (times_to_target, learning_rates, tuning_curves):
        drawn = draw(search)
        assert drawn and "econds of training to" in drawn.title + drawn.figure.get_supxlabel()
    axes = times_to_target(search).figure.axes[0]  # type: ignore[union-attr]
    assert axes.get_xlim()[1] == pytest.approx(1.16 * 160 * (search.seconds["adamw"] or math.nan))


def test_no_order_is_said_to_differ_where_none_does() -> None:
    assert order(made("gradient-evaluations", dataclasses.replace(DEAR, seconds_per_step=0.025))) == ()
    assert order(made("gradient-evaluations", dataclasses.replace(DEAR, top=0.5))) == (), "adamw has no time"


def test_a_miss_is_never_cheaper_than_a_time_and_two_misses_are_equal() -> None:
    """The whole budget of sgdm, 160 evaluations of .025 s, takes less time than most runs of adamw."""
    search = made("seconds")
    cheap, dear = (search.confirmed(name)[0] for name in ("sgdm", "adamw"))
    missed = [
        dataclasses.replace(
            run, history=[dataclasses.replace(metrics, validation_accuracy=0.2) for metrics in run.history]
        )
        for run in (cheap, dear)
    ]
    rates = [seconds_per_evaluation(search, name) or math.nan for name in ("sgdm", "adamw")]
    reached = cost(search, dear, 0.95, "seconds")
    assert reached > 161 * rates[0]
    assert bounded_costs(search, [missed[0], dear], 0.95, "seconds") == [reached, reached]
    ours, theirs = bounded_costs(search, [cheap, missed[1]], 0.95, "seconds")
    assert ours == cost(search, cheap, 0.95, "seconds") and theirs == 161 * rates[1]
    assert bounded_costs(search, missed, 0.95, "seconds") == [161 * rates[1]] * 2
    assert bounded_costs(search, [missed[0], dear], 0.95, "gradient_evaluations")[0] == 161


def test_seconds_to_a_target_are_evaluations_times_the_seconds_of_one() -> None:
    for search in (made("seconds"), made("gradient-evaluations")):
        found = {(time.variant, time.target, time.unit): time.interval.estimate for time in times(search)}
        for (name, target, unit), median in found.items():
            if unit == "seconds":
                rate = seconds_per_evaluation(search, name) or math.nan
                assert median == pytest.approx(rate * found[name, target, "gradient_evaluations"])


def test_variants_that_train_alike_are_named_even_where_their_seconds_differ() -> None:
    seconds = {"sgdm": 0.010, "adamw": 0.011}
    alike, other = ([(60.0, 60.0), (50.0, 50.0), (math.inf, math.inf)], [(60.0, 60.0), (50.0, 51.0)])
    for evaluations in (alike, other):
        times = {name: [pair[k] * seconds[name] for pair in evaluations] for k, name in enumerate(seconds)}
        search = raced(times, cost="seconds")
        search.set_seconds(seconds)
        named = [sentence for sentence in answer(search) if "trained alike" in sentence]
        assert bool(named) == (evaluations is alike)
        assert all("0.01 and 0.011, put them in order" in sentence for sentence in named)
