"""The pictures of the race and its table: what is drawn is what was counted."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import pytest
from matplotlib.axes import Axes

from benchmarks.simulated_search import Truth, simulate
from search_spaces import SPACES
from tests.report.racing import MISS, end_rounds, raced
from tuner import race as rules
from tuner.core.search_spec import SearchSpec
from tuner.report.document import Picture
from tuner.report.figures import styles
from tuner.report.race_figures import costs, growth, pairs, race, shares
from tuner.study.results import Search

TRUTHS = {
    "sgdm": Truth(speed=0.45),
    "adamw": Truth(speed=0.9, lr_best=0.003),
    "lpsgdm": Truth(speed=0.6, lr_best=0.02),
    "critical": Truth(speed=0.55),
}


@pytest.fixture(scope="module")
def decided() -> Search:
    """A simulated search, of which one variant is left."""
    search = simulate(SearchSpec(name="x", variants=tuple(TRUTHS), confirm_seeds=0, refine_trials=0), TRUTHS)
    assert search.race.left == ["adamw"] and len(search.race.out) == 3
    return search


def axes_of(picture: Picture | None) -> list[Axes]:
    assert picture is not None
    return [axes for axes in picture.figure.axes if axes.get_visible()]


def line(axes: Axes, index: int) -> list[tuple[float, float]]:
    return [(x, y) for x, y in np.asarray(axes.lines[index].get_xydata(), dtype=float).tolist()]


def thresholds(axes: Axes) -> list[float]:
    return [line(axes, k)[0][1] for k, drawn in enumerate(axes.lines) if drawn.get_linestyle() == ":"]


def titles(picture: Picture | None) -> list[str]:
    return [axes.get_title("left") for axes in axes_of(picture)]


def by_hand(results: Sequence[int]) -> list[tuple[float, float]]:
    """Number of rounds, and the evidence after them, of results 1, 0 and -1."""
    after = [results[:number] for number in range(len(results) + 1)]
    return [(number, rules.evidence(some.count(1), some.count(-1))) for number, some in enumerate(after)]


def test_a_line_is_the_evidence_after_each_round_up_to_where_the_variant_is_out() -> None:
    results = [1, 0, -1, *[1] * 12]
    times = {"sgdm": [{1: 60.0, 0: 30.0, -1: 20.0}[r] for r in results], "adamw": [30.0] * len(results)}
    search = raced(times, trials=20)
    assert search.race.left == ["adamw"]
    (axes,) = axes_of(growth(search))
    assert titles(growth(search)) == ["adamw over sgdm"]
    num = len(search.race.rounds)
    np.testing.assert_allclose(line(axes, 0), by_hand(results[:num]))
    assert line(axes, 0)[-1][1] >= thresholds(axes)[0] > line(axes, 0)[-2][1]
    assert thresholds(axes) == pytest.approx([2 / 0.05])
    assert (
        axes.get_yscale() == "log"
        and (axes.lines[0].get_color(), axes.lines[0].get_linestyle()) == styles(["sgdm"])["sgdm"]
    )
    low, high = axes.get_ylim()
    assert low <= min(y for _, y in line(axes, 0)) and thresholds(axes)[0] <= high


def test_each_variant_has_the_line_of_the_strongest_against_it(decided: Search) -> None:
    drawn = titles(growth(decided))
    assert drawn == ["adamw over sgdm", "adamw over lpsgdm", "adamw over critical"]
    search = raced({"sgdm": [60.0, 60.0, 60.0], "adamw": [30.0, 31.0, 30.0], "lion": [50.0, 30.0, 31.0]})
    # adamw won two of three against lion, and nobody won more against adamw than adamw against them.
    assert titles(growth(search)) == ["adamw over sgdm", "adamw over lion"]


def test_a_variant_that_joined_later_begins_where_it_joined_and_has_its_own_threshold() -> None:
    search = raced(
        {"sgdm": [60.0] * 3, "adamw": [60.0, 40.0, 60.0]},
        joined={"lion": 3},
        variants=("sgdm", "adamw", "lion"),
        trials=20,
    )
    end_rounds(search, {"sgdm": [60.0] * 2, "adamw": [60.0] * 2, "lion": [30.0] * 2})
    picture = growth(search)
    first, second = axes_of(picture)
    assert titles(picture) == ["lion over sgdm", "lion over adamw"]
    np.testing.assert_allclose(line(first, 0), [(3 + x, y) for x, y in by_hand([1, 1])])
    # Half of the error rate, over the three that two variants count as, at least.
    assert thresholds(first) == thresholds(second) == pytest.approx([3 / 0.025])


def test_with_alpha_0_there_is_no_threshold() -> None:
    (axes,) = axes_of(growth(raced({"sgdm": [60.0] * 9, "adamw": [30.0] * 9}, alpha=0.0)))
    assert thresholds(axes) == [] and len(line(axes, 0)) == 10


def test_without_a_round_that_somebody_won_there_is_no_evidence_to_draw() -> None:
    alike: list[dict[str, list[float]]] = [
        {"sgdm": [60.0], "adamw": [60.0]},
        {"sgdm": [MISS], "adamw": [MISS]},
        {"sgdm": [], "adamw": []},
    ]
    for times in alike:
        assert growth(raced(times)) is None and shares(raced(times)) is None


def test_shares_are_those_against_the_baseline_with_their_intervals() -> None:
    times = {"adamw": [30.0, 60.0, 30.0], "sgdm": [60.0, 30.0, 60.0], "lion": [60.0, 30.0, 60.0]}
    search = raced(times)
    (axes,) = axes_of(shares(search))
    # No round ordered lion and the baseline.
    assert [label.get_text() for label in axes.get_yticklabels()] == ["adamw"]
    bar, middle = line(axes, 0), line(axes, 1)
    assert [x for x, _ in bar] == pytest.approx(rules.interval(2, 1)) and middle[0] == pytest.approx((2 / 3, 0))
    assert [label.get_text() for label in axes_of(shares(raced(times, baseline="lion")))[0].get_yticklabels()] == [
        "adamw"
    ]


def test_costs_are_the_gradient_evaluations_of_the_race_alone(decided: Search) -> None:
    search = simulate(SearchSpec(name="x", variants=("sgdm", "adamw"), trials=8), {"sgdm": Truth(), "adamw": Truth()})
    (axes,) = axes_of(costs(search))
    for patch, name in zip(axes.patches, ("sgdm", "adamw"), strict=True):
        spent = [r.history[-1].gradient_evaluations for r in search.trials_of(name) if r.phase == "race"]
        assert patch.get_width() == pytest.approx(sum(spent) / 160)  # type: ignore[attr-defined]
    said = [text.get_text() for text in axes_of(costs(decided))[0].texts]
    assert said[1].endswith("(fastest)") and said[0].endswith(f"(out, round {decided.race.out['sgdm'] + 1})")


def test_the_table_counts_each_pair_once() -> None:
    times = {"sgdm": [60.0, 60.0, 31.0, 60.0], "adamw": [30.0, 31.0, 60.0, 60.0], "lion": [60.0, 30.0, 30.0, 60.0]}
    search = raced(times, trials=40)
    table = pairs(search)
    rows = {row[:2]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert list(rows) == [("sgdm", "adamw"), ("sgdm", "lion"), ("adamw", "lion")]
    row = rows["sgdm", "adamw"]
    assert (row["won"], row["lost"], row["neither"]) == ("1", "2", "1")
    low, high = rules.interval(1, 2)
    assert row["share won"] == f"[{low:.0%}, {high:.0%}]" and row["out at"] == "40"
    assert float(row["evidence"]) == pytest.approx(rules.evidence(1, 2), rel=0.01)
    assert float(row["evidence against"]) == pytest.approx(rules.evidence(2, 1), rel=0.01)


def test_rounds_that_a_variant_was_not_in_count_for_none(decided: Search) -> None:
    search = raced(
        {"sgdm": [60.0] * 2, "adamw": [60.0] * 2}, joined={"lion": 2}, variants=("sgdm", "adamw", "lion"), trials=9
    )
    end_rounds(search, {"sgdm": [60.0], "adamw": [60.0], "lion": [30.0]})
    (row,) = (row for row in pairs(search).rows if row[:2] == ("sgdm", "lion"))
    assert row[2:5] == ("0", "1", "0")


def test_a_race_without_a_round_has_no_section_to_show() -> None:
    section = race(raced({"sgdm": [], "adamw": []}))
    assert not section.pictures and not section.tables


def odd() -> dict[str, Search]:
    failed = simulate(
        SearchSpec(name="x", variants=("sgdm", "adamw"), trials=4), dict.fromkeys(("sgdm", "adamw"), Truth())
    )
    for record in failed.records.values():
        record.status, record.history = "failed", []
    names = tuple(SPACES)
    many = raced({name: [30.0 + k for k in range(i, i + 3)] for i, name in enumerate(names)})
    return {
        "all missed": raced({"sgdm": [MISS] * 3, "adamw": [MISS] * 3}),
        "all failed": failed,
        "accuracy": raced({"sgdm": [-0.9] * 3, "adamw": [-0.8, -0.95, -0.95]}, objective="accuracy"),
        "all variants": many,
    }


@pytest.mark.parametrize("name", list(odd()))
def test_odd_races_are_drawn_without_a_warning(name: str) -> None:
    section = race(odd()[name])
    for picture in section.pictures:
        assert picture.title.endswith(".") and picture.figure.get_figwidth() < 6.5
        picture.figure.savefig(io.BytesIO(), format="svg")
    assert all(all(row) for table in section.tables for row in table.rows)
    if name == "accuracy":
        assert "better" in section.pictures[0].title and "faster" not in section.pictures[0].title
