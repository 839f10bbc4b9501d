"""Times to target and verdicts of searches of known truth: who is paired, who is left out, and how often it errs."""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Callable
from math import inf
from pathlib import Path

import numpy as np
import pytest

from benchmarks.calibration import SAME, searches
from benchmarks.simulated_search import Truth, curve, simulate
from tuner.core.errors import InvalidInput
from tuner.core.search_spec import SearchSpec
from tuner.report.comparison import (
    UNITS,
    compare,
    compare_pair,
    cost,
    describe,
    ranking,
    times,
    tuned_against_default,
    write_csv,
)
from tuner.report.intervals import Interval, paired_ratio, search_ratio
from tuner.study.results import Search

SLOW, FAST = Truth(), Truth(speed=1.2)
SECONDS = ("sgdm", 0.95, "seconds")


def made(sgdm: Truth = SLOW, adamw: Truth = FAST, critical: Truth = SLOW, **changes: object) -> Search:
    """A search over three variants."""
    spec = SearchSpec.from_flags(name="made", variants=("sgdm", "adamw", "critical"), **changes)
    return simulate(spec, {"sgdm": sgdm, "adamw": adamw, "critical": critical})


def test_times_are_medians_over_the_confirmed_runs() -> None:
    search = made()
    runs = search.confirmed("adamw")
    rows = {(t.variant, t.target, t.unit): t for t in times(search)}
    assert len(rows) == 3 * 2 * 3
    for unit in UNITS:
        row = rows["adamw", 0.95, unit]
        assert row.interval.estimate == np.median([cost(run, 0.95, unit) for run in runs.values()])
        assert (row.reached, row.num_seeds, row.point) == (6, 6, "best")
    assert (
        rows["adamw", 0.95, "gradient_evaluations"].interval.estimate
        == 16 * rows["adamw", 0.95, "epochs"].interval.estimate
    )
    assert {t.num_seeds for t in times(search, "default")} == {3}


def test_a_miss_counts_and_a_failure_does_not() -> None:
    search = made()
    runs = list(search.confirmed("adamw").values())
    runs[0].history = runs[0].history[:1]
    runs[1].status, runs[1].history[-1] = "diverged", dataclasses.replace(runs[1].history[-1], diverged=True)
    assert [cost(run, 0.95, "epochs") for run in runs[:2]] == [inf, inf], "a run that diverged later did not get there"
    runs[2].status, runs[3].status, runs[4].status = "failed", "running", "pending"
    row = next(t for t in times(search) if (t.variant, t.target, t.unit) == ("adamw", 0.95, "epochs"))
    assert (row.reached, row.num_seeds, row.interval.estimate) == (1, 3, inf)


def test_csv(tmp_path: Path) -> None:
    write_csv(made(adamw=Truth(top=0.92, jitter=0.001)), tmp_path / "time_to_target.csv")
    text = (tmp_path / "time_to_target.csv").read_text()
    assert text.splitlines()[0] == "variant,target,unit,median,low,high,level,reached,num_seeds"
    rows = {(row["variant"], row["target"], row["unit"]): row for row in csv.DictReader(text.splitlines())}
    missed = rows["adamw", "0.95", "seconds"]
    assert [missed[name] for name in ("median", "low", "high", "reached", "num_seeds")] == [
        "inf",
        "inf",
        "inf",
        "0",
        "6",
    ]
    assert float(rows["sgdm", "0.9", "epochs"]["level"]) == 31 / 32


def test_equal_seeds_are_pairs() -> None:
    search = made()
    ours, theirs = search.confirmed("adamw"), search.confirmed("sgdm")
    ours[0].status, theirs[5].status = "failed", "failed"
    costs = [[cost(runs[k], 0.9, "seconds") for k in (1, 2, 3, 4)] for runs in (ours, theirs)]
    assert compare_pair(search, "adamw", "sgdm", "seconds", 0.9).settings == paired_ratio(costs[0], costs[1])


def test_the_luck_of_a_search_is_in_its_random_arm() -> None:
    search = made(trials=16)
    before = compare_pair(search, "adamw", "sgdm")
    arms = [
        [cost(r, 0.95, "gradient_evaluations") for r in search.trials_of(name) if r.arm == "random"]
        for name in ("adamw", "sgdm")
    ]
    assert len(arms[0]) == 8 and inf in arms[0], "stopped trials are there"
    assert before.search == search_ratio(arms[0], arms[1])
    for record in search.trials_of("adamw"):
        if record.arm == "model":
            record.history, record.arm = curve(record.spec, Truth(speed=9)), "default"
    assert compare_pair(search, "adamw", "sgdm").search == before.search
    arm = [r for r in search.trials_of("adamw") if r.arm == "random"]
    for record, status in zip(arm, ("failed", "running", "pending"), strict=False):
        record.status = status
    assert compare_pair(search, "adamw", "sgdm").search == search_ratio(arms[0][3:], arms[1])


def test_a_sentence_about_variants_needs_both() -> None:
    found = compare_pair(made(), "adamw", "sgdm")
    assert found.settings and found.search and found.whole
    assert (found.settings_verdict, found.verdict) == ("faster", "undecided"), "four random trials are too few"
    assert found.whole.low == min(found.settings.low, found.search.low)
    assert found.whole.high == max(found.settings.high, found.search.high)
    assert found.whole.level == min(found.settings.level, found.search.level)
    assert found.p_value == found.whole.p_value == max(found.settings.p_value or 0, found.search.p_value or 0)
    more = next(searches(1, 32, SLOW, 2.0))
    assert [compare_pair(more, *pair).verdict for pair in (("twin", "sgdm"), ("sgdm", "twin"))] == ["faster", "slower"]


def test_p_values_are_adjusted_for_all_that_is_compared() -> None:
    search = made(critical=Truth(speed=0.9), trials=32)
    found = {c.variant: c for c in compare(search)}
    assert list(found) == ["adamw", "critical"] and {c.baseline for c in found.values()} == {"sgdm"}
    alone = {name: compare_pair(search, name, "sgdm") for name in found}
    p = {name: alone[name].p_value or 0.0 for name in alone}
    smaller, larger = sorted(p, key=lambda name: p[name])
    assert p[smaller] < p[larger]
    assert found[smaller].p_value == pytest.approx(2 * p[smaller])
    assert found[larger].p_value == pytest.approx(min(1.0, max(2 * p[smaller], p[larger])))
    assert found[smaller].whole == alone[smaller].whole, "the interval shown is of one comparison"
    assert [c.variant for c in compare(search, baseline="critical")] == ["sgdm", "adamw"]


def test_a_verdict_follows_the_adjusted_p_value() -> None:
    """All four of an arm before all four of the other: one comparison is decided so, two are not."""
    fast = dataclasses.replace(SAME, speed=2 * SAME.speed)
    search = made(SAME, fast, fast, early_stopping=False)
    assert compare_pair(search, "adamw", "sgdm").verdict == "faster"
    assert [c.p_value for c in compare(search)] == pytest.approx([4 / 70] * 2)
    assert {c.verdict for c in compare(search)} == {"undecided"}


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(InvalidInput, match="unknown variant 'adam': did you mean 'adamw'"):
        compare(made(), baseline="adam")


def test_tuned_against_default() -> None:
    search = made(sgdm=Truth(lr_best=0.003), adamw=SAME)
    found = tuned_against_default(search)
    assert list(found) == ["sgdm", "adamw", "critical"]
    assert found["sgdm"] and found["sgdm"].estimate < 0.9
    assert found["adamw"] and found["adamw"].estimate == 1


def test_ranking() -> None:
    search = made(sgdm=Truth(top=0.92, jitter=0.001), critical=Truth(top=0.94, jitter=0.001))
    assert ranking(search) == ["adamw", "critical", "sgdm"], "of those that missed, the smaller error is first"
    once = search.confirmed("sgdm")[0].history
    once[-1] = dataclasses.replace(once[-1], validation_accuracy=0.96)
    assert ranking(search) == ["adamw", "sgdm", "critical"], "of equal medians, the larger share"
    for record in search.confirmed("adamw").values():
        record.status = "failed"
    assert ranking(search) == ["sgdm", "critical", "adamw"], "unconfirmed ones are last"


@pytest.mark.parametrize(
    ("interval", "unit", "shown"),
    [
        (Interval(64, 48, 80, 31 / 32), "", "64 [48, 80] (97%)"),
        (Interval(64, 48, 80, 31 / 32), "gradient_evaluations", "64 [48, 80] gradient evaluations (97%)"),
        (Interval(0.6, 0.5, 0.8, 0.95), "", "0.6 [0.5, 0.8] (95%)"),
        (Interval(12345.6, 999.5, inf, 0.75), "seconds", "12346 [≥1000] seconds (75%)"),
        (Interval(inf, 160, inf, 0.95), "epochs", "not reached [≥160] epochs (95%)"),
        (Interval(inf, inf, inf, 0.95), "epochs", "not reached (95%)"),
    ],
)
def test_describe(interval: Interval, unit: str, shown: str) -> None:
    assert describe(interval, unit) == shown


def empty() -> Search:
    search = made()
    search.records.clear()
    return search


def unfinished() -> Search:
    search = made()
    for record in search.records.values():
        record.status, record.history = "running", record.history[:1]
    return search


ODD: dict[str, Callable[[], Search]] = {
    "empty": empty,
    "unfinished": unfinished,
    "all diverged": lambda: made(*[Truth(lr_limit=1e-9)] * 3),
    "all missed": lambda: made(*[Truth(top=0.5)] * 3),
    "one trial": lambda: made(trials=1),
    "not confirmed": lambda: made(confirm_seeds=0),
    "one seed": lambda: made(confirm_seeds=1),
    "alone": lambda: simulate(SearchSpec(name="x", variants=("sgdm",)), {"sgdm": SLOW}),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_searches_say_what_they_can(name: str, tmp_path: Path) -> None:
    search = ODD[name]()
    write_csv(search, tmp_path / "times.csv")
    assert sorted(ranking(search)) == sorted(variant.name for variant in search.variants)
    found = compare(search)
    assert len(found) == len(search.variants) - 1
    for c in found:
        assert c.verdict == "undecided" and (c.whole is None) == (c.p_value is None)
        if name not in ("one trial", "alone"):
            assert c.settings_verdict == "undecided"
    said = [t.interval for t in times(search)] + [c.whole for c in found] + list(tuned_against_default(search).values())
    for interval in said:
        assert interval is None or not math.isnan(interval.low + interval.estimate + interval.high + interval.level)
        assert interval is None or describe(interval)
    assert bool(times(search)) == (name not in ("empty", "unfinished", "all diverged", "not confirmed"))


@pytest.mark.slow
def test_two_names_of_one_variant_are_called_different_no_more_often_than_stated() -> None:
    """Search with rungs, selection, fresh seeds, verdict.  Of 200 at 5% more than 20 come once in a thousand times."""
    found = [compare(search)[0] for search in searches(200, 16, SLOW)]
    assert sum(c.verdict != "undecided" for c in found) <= 20
    # The settings found do differ: their seeds alone call a difference of the variants too often.
    assert sum(c.settings_verdict != "undecided" for c in found) > 20


@pytest.mark.slow
def test_seeds_call_equal_settings_different_no_more_often_than_stated() -> None:
    found = [compare(search)[0] for search in searches(200, 4, SAME)]
    assert 1 <= sum(c.settings_verdict != "undecided" for c in found) <= 20


@pytest.mark.slow
def test_intervals_of_searches_cover_the_truth() -> None:
    """Every setting trains alike, so that the truth is that of many more seeds."""
    speed, fast = 1.5, dataclasses.replace(SAME, speed=1.5 * SAME.speed)
    found = list(searches(150, 1, SAME, speed))
    run = found[0].confirmed("sgdm")[0]
    many = [dataclasses.replace(run.spec, seed=seed) for seed in range(4000)]
    ours, theirs = (
        [cost(dataclasses.replace(run, history=curve(spec, truth)), 0.95, "seconds") for spec in many]
        for truth in (fast, SAME)
    )
    median, ratio = np.median(theirs), math.exp(np.mean(np.log(ours)) - np.mean(np.log(theirs)))
    rows = [t.interval for search in found for t in times(search) if (t.variant, t.target, t.unit) == SECONDS]
    settings = [compare(search, "seconds")[0].settings for search in found]
    # 3.5 standard deviations below 96.9% and 95%.
    assert np.mean([row.low <= median <= row.high for row in rows]) > 0.919
    assert np.mean([each is not None and each.low <= ratio <= each.high for each in settings]) > 0.887


@pytest.mark.slow
def test_twice_as_fast_is_found() -> None:
    assert sum(compare(search)[0].verdict == "faster" for search in searches(40, 32, SLOW, 2.0)) >= 28
