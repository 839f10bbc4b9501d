"""Rankings of several trainings beside chance."""

from __future__ import annotations

import itertools
import math

import pytest

from tuner.core.errors import InvalidInput
from tuner.diagnose.agreement import agreement

SEVEN = "abcdefg"


def test_the_same_three_of_seven_are_named_by_chance_once_in_35() -> None:
    found = agreement(["abcdefg", "cbagfed"], 3)
    assert found.pairs[0, 1].shared == 3
    assert found.p_value == found.pairs[0, 1].chance == pytest.approx(1 / 35)


@pytest.mark.parametrize(("theirs", "shared"), [("abcdefg", 3), ("abdcefg", 2), ("adebcfg", 1), ("defgabc", 0)])
def test_chance_is_that_of_all_the_ways_to_name_three(theirs: str, shared: int) -> None:
    ways = [len(set("abc") & set(named)) for named in itertools.combinations(SEVEN, 3)]
    (pair,) = agreement([SEVEN, theirs], 3).pairs.values()
    assert pair.shared == shared
    assert pair.chance == pytest.approx(sum(way >= shared for way in ways) / math.comb(7, 3))


def test_rank_correlation_is_over_all_groups() -> None:
    found = agreement(["abcd", "abdc", "dcba"], 2)
    assert [pair.tau for pair in found.pairs.values()] == pytest.approx([4 / 6, -1, -4 / 6])


def test_the_probability_of_a_mean_is_that_of_random_rankings() -> None:
    """Against all 6^3 ways in which three runs name two of four groups."""
    named = list(itertools.combinations("abcd", 2))

    def mean(ways: tuple[tuple[str, ...], ...]) -> float:
        return sum(len(set(a) & set(b)) for a, b in itertools.combinations(ways, 2)) / 3

    all_means = [mean(ways) for ways in itertools.product(named, repeat=3)]
    for rankings in (["abcd", "abdc", "badc"], ["abcd", "acbd", "cdab"], ["abcd", "cdab", "bcad"]):
        found = agreement(rankings, 2)
        assert found.mean_shared == pytest.approx(mean(tuple(tuple(ranking[:2]) for ranking in rankings)))
        exact = sum(value >= found.mean_shared - 1e-9 for value in all_means) / len(all_means)
        assert found.p_value == pytest.approx(exact, abs=0.02)
        assert found.expected_shared == pytest.approx(sum(all_means) / len(all_means))


@pytest.mark.parametrize(
    ("rankings", "number", "message"),
    [
        (["abc"], 1, "at least two runs"),
        (["abc", "abd"], 1, "different models"),
        (["abc", "ab"], 1, "different models"),
        (["abc", "bca"], 3, r"must be in \[1, 2\]"),
        (["abc", "bca"], 0, r"must be in \[1, 2\]"),
    ],
)
def test_what_cannot_be_compared_is_refused(rankings: list[str], number: int, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        agreement(rankings, number)
