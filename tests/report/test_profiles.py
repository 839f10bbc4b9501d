"""Performance profiles worked out by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks.simulated_search import Truth, simulate
from tuner.core.metrics import EpochMetrics
from tuner.core.search_spec import SearchSpec
from tuner.report.profiles import left_out, performance_profiles
from tuner.study.results import Search

Epoch = Callable[..., EpochMetrics]
Workload = Callable[..., Search]


@pytest.fixture
def workload(epoch: Epoch) -> Workload:
    """A search whose confirmed runs reach the higher target at these epochs, of ten gradient evaluations each.

    None where they miss it, nothing for a variant that is not confirmed.  The lower target is no matter.
    """

    def make(**reached: list[int | None]) -> Search:
        spec = SearchSpec.from_flags(
            name="s", variants=tuple(reached), trials=1, round_size=1, refine_trials=1, targets=(0.3, 0.9),
            confirm_seeds=3, confirm="all",
        )  # fmt: skip
        search = simulate(spec, {name: Truth() for name in reached})
        for name, epochs in reached.items():
            for k, record in search.confirmed(name).items():
                if k >= len(epochs):
                    del search.records[record.name]
                    continue
                hit = epochs[k] or 99
                # The target itself is met at the evaluation, with nothing to interpolate.
                record.history = [epoch(i, 0.9 if i >= hit else 0.4, seconds=1.0 * i**2) for i in range(1, 11)]
        return search

    return make


def shares(searches: list[Search]) -> dict[str, dict[float, float]]:
    return {p.variant: dict(zip(p.factors, p.shares, strict=True)) for p in performance_profiles(searches)}


def test_shares_rise_where_a_variants_cost_is_that_many_times_the_best(workload: Workload) -> None:
    searches = [
        workload(sgdm=[2, 2, 2], adamw=[3, 3, 3], lion=[9, 9, 9]),
        workload(sgdm=[8, 8, 8], adamw=[4, 4, 4], lion=[6, 6, 6]),
    ]
    assert shares(searches) == {
        "sgdm": {1: 0.5, 1.5: 0.5, 2: 1.0, 4: 1.0},
        "adamw": {1: 0.5, 1.5: 1.0, 2: 1.0, 4: 1.0},
        "lion": {1: 0.0, 1.5: 0.5, 2: 0.5, 4: 0.5},
    }
    assert {profile.num_workloads for profile in performance_profiles(searches)} == {2}


def test_the_cost_is_the_median_and_ends_are_included(workload: Workload) -> None:
    assert shares([workload(sgdm=[1, 2, 10], adamw=[8, 8, 8])])["adamw"] == {1: 0.0, 4: 1.0}
    assert shares([workload(sgdm=[2, 2, 2], adamw=[9, 9, 9])])["adamw"] == {1: 0.0, 4: 0.0}


def test_a_miss_is_outside_at_every_factor(workload: Workload) -> None:
    found = shares([workload(sgdm=[5, 5, 5], adamw=[1, None, None], lion=[])])
    assert found == {"sgdm": {1: 1.0, 4: 1.0}, "adamw": {1: 0.0, 4: 0.0}, "lion": {1: 0.0, 4: 0.0}}


def test_a_workload_that_none_solved_counts_against_all(workload: Workload) -> None:
    found = shares([workload(sgdm=[None] * 3, adamw=[None] * 3), workload(sgdm=[5] * 3, adamw=[5] * 3)])
    assert found == {"sgdm": {1: 0.5, 4: 0.5}, "adamw": {1: 0.5, 4: 0.5}}


def test_a_variant_that_some_searches_lack_is_left_out_of_the_best_too(workload: Workload) -> None:
    searches = [workload(sgdm=[6] * 3, lion=[3] * 3, adamw=[9] * 3), workload(adamw=[3] * 3, sgdm=[6] * 3)]
    assert shares(searches) == {"sgdm": {1: 0.5, 1.5: 0.5, 2: 1.0, 4: 1.0}, "adamw": {1: 0.5, 1.5: 1.0, 2: 1.0, 4: 1.0}}
    assert left_out(searches) == left_out(searches[::-1]) == ["lion"]
    assert left_out(searches[:1]) == []


def test_nothing_in_common_or_nothing_at_all_gives_nothing(workload: Workload) -> None:
    apart = [workload(sgdm=[5] * 3), workload(adamw=[5] * 3)]
    assert performance_profiles(apart) == performance_profiles([]) == []
    assert left_out(apart) == ["sgdm", "adamw"] and left_out([]) == []
