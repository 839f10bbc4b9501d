"""A race in seconds: timings of each variant, alone and once, and rounds, caps and results by what they found.

Trainings are formulas: ``fast`` needs half the gradient evaluations of ``slow``, and each takes four times as long.
"""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.simulated_search import Truth
from tests.study.programs import TRUTHS, Kept, Program, check_whole, of_phase, outcome
from tuner.core.errors import InvalidInput
from tuner.core.metrics import EpochMetrics
from tuner.core.search_spec import SearchSpec
from tuner.report.verdict import answer, standing
from tuner.study.objectives import race_time
from tuner.study.results import Search
from tuner.study.search_folder import refuse_changes, seconds_of
from tuner.study.timings import NUM_SPARE, NUM_TIMINGS, measured_seconds, timed, timing_epochs, usual_seconds
from tuner.study.trial_record import TrialRecord

Epoch = Callable[..., EpochMetrics]
BOTH = ("fast", "slow")
PLANTED = {
    "fast": dataclasses.replace(TRUTHS["fast"], seconds_per_step=0.1),
    "slow": TRUTHS["slow"],
    "near": dataclasses.replace(TRUTHS["near"], seconds_per_step=0.05),
}


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    """A search that nobody has worked on yet."""
    return Kept(tmp_path, PLANTED)


def another(kept: Kept, name: str) -> Kept:
    """The same search in another folder, with nothing in it yet."""
    folder = kept.folder / name
    folder.mkdir()
    return Kept(folder, kept.truths, fails=kept.fails)


def told(epoch: Epoch, *totals: tuple[int, float], diverged: bool = False) -> list[EpochMetrics]:
    """Evaluations with these gradient evaluations and seconds of training; the last one may be a divergence."""
    made = [
        epoch(k, 0.5, gradient_evaluations=spent, seconds=seconds) for k, (spent, seconds) in enumerate(totals, start=1)
    ]
    made[-1] = dataclasses.replace(made[-1], diverged=diverged)
    return made


def test_a_timing_counts_what_comes_after_its_first_evaluation(epoch: Epoch) -> None:
    assert timed(told(epoch, (10, 5.0), (20, 6.0), (40, 8.0))) == 0.1
    assert timed(told(epoch, (40, 8.0))) == 0.2, "backward phases may have a single evaluation"
    assert timed([]) is None
    assert timed(told(epoch, (10, 5.0), (20, 6.0), (21, 9.0), diverged=True)) == 0.1
    assert timed(told(epoch, (10, 5.0), (11, 6.0), diverged=True)) is None
    assert timed(told(epoch, (3, 5.0), diverged=True)) is None


def test_the_figure_of_a_variant_is_the_median_of_its_timings(epoch: Epoch) -> None:
    made = [told(epoch, (10, 1.0), (20, 1.0 + 10 * figure)) for figure in (0.1, 0.7, 0.2)]
    assert measured_seconds([*made, []]) == pytest.approx(0.2)
    assert measured_seconds([[]]) is None is measured_seconds([])
    assert usual_seconds([told(epoch, (10, 1.0)), told(epoch, (10, 4.0)), told(epoch, (20, 4.0)), []]) == 0.2
    assert usual_seconds([[]]) is None


def test_a_timing_is_long_enough_to_hold_the_rare_steps_of_a_rule() -> None:
    assert [timing_epochs(steps) for steps in (1, 16, 50, 100, 800)] == [101, 8, 3, 2, 2]


def test_variant_with_fewer_but_dearer_evaluations_wins_by_evaluations_and_loses_by_seconds(kept: Kept) -> None:
    by_evaluations = another(kept, "evaluations").open(BOTH)
    by_seconds = kept.open(BOTH, cost="seconds")
    assert by_evaluations.run(2) and by_seconds.run(2)
    check_whole(by_seconds)
    assert by_evaluations.search.race.left == ["fast"] and by_seconds.search.race.left == ["slow"]
    assert not by_evaluations.search.timings() and not by_evaluations.search.seconds
    search = by_seconds.search
    assert search.seconds == pytest.approx({"fast": 0.1, "slow": 0.025}, rel=0.02)
    assert search.seconds == seconds_of(search.folder)
    for one in search.race.rounds:
        for name, result in one.results.items():
            records = [r for r in of_phase(search, "race", name) if r.place["round"] == one.number]
            least = min(race_time("time-to-target", r.status, r.history, (0.8,)) for r in records)
            cost = least * (search.seconds[name] or math.nan)
            assert result == (cost if cost <= one.end else math.inf)
    assert answer(search)[0].startswith("slow is the fastest of 2 variants")
    assert "Fast is by seconds of training" in answer(search)[1]
    assert not any("seconds" in sentence for sentence in answer(by_evaluations.search))


@pytest.mark.parametrize("num_workers", [1, 6])
def test_timings_come_first_and_each_is_alone(kept: Kept, num_workers: int) -> None:
    program = kept.open(BOTH, cost="seconds", targets="auto", trials=8)
    plain = another(kept, "plain").open(BOTH, targets="auto", trials=8)
    assert program.scheduler.num_planned == plain.scheduler.num_planned + 2 * NUM_TIMINGS
    search = program.search
    while search.to_be_timed:
        assert not program.run(num_workers, steps=1)
        live = [record for record in search.records.values() if not record.ended]
        assert len(live) <= 1 or not search.to_be_timed
        assert all(record.phase == "timing" for record in live) or not search.to_be_timed
    made = search.timings()
    # In turn, so that a device that becomes slow is as slow for both.
    assert [record.name for record in made] == [f"{name}/timing-{k}" for k in (1, 2, 3) for name in BOTH]
    for record in made:
        assert record.spec.optimizer == search.default_optimizer(record.variant)
        assert record.spec.epochs == len(record.history) == 8 and not record.spec.targets
    seeds = Counter(record.spec.seed for record in made)
    assert set(seeds.values()) == {2} and len(seeds) == NUM_TIMINGS
    assert program.run(num_workers)
    check_whole(program)
    assert not set(seeds) & {record.spec.seed for record in search.trainings()}
    assert program.scheduler.num_planned >= len(search.records)


def test_caps_by_seconds_change_no_round(kept: Kept) -> None:
    outcomes, spent = [], dict[bool, int]()
    for early_stopping, num_workers in ((False, 1), (True, 1), (True, 5)):
        program = another(kept, f"{early_stopping}-{num_workers}").open(
            ("slow", "near", "fast"), cost="seconds", early_stopping=early_stopping
        )
        assert program.run(num_workers)
        check_whole(program)
        outcomes.append(outcome(program.search))
        spent.setdefault(early_stopping, sum(r.gradient_evaluations for r in of_phase(program.search, "race")))
    assert outcomes[0] == outcomes[1] == outcomes[2] and outcomes[0][2], "nobody is out"
    assert spent[True] < 0.7 * spent[False]


def test_killed_while_it_measures_a_search_finds_the_same_seconds_and_the_same_race(kept: Kept) -> None:
    alone = another(kept, "alone").open(BOTH, cost="seconds", trials=12)
    assert alone.run()
    generator, num_killed = random.Random(1), 0
    while True:
        program = kept.open(BOTH, cost="seconds", trials=12)
        assert not program.run(2, seed=num_killed, steps=generator.randrange(1, 60))
        if not program.search.to_be_timed:
            break
        num_killed += 1
    assert num_killed > 2
    program = kept.open(BOTH, cost="seconds", trials=12)
    assert program.run(2)
    check_whole(program)
    assert program.search.seconds == alone.search.seconds and len(program.search.timings()) == 2 * NUM_TIMINGS
    assert outcome(program.search) == outcome(alone.search)
    assert kept.open(BOTH, cost="seconds", trials=12).scheduler.is_complete()


def test_seconds_are_kept_on_resume_whatever_the_machine_does_and_an_added_variant_is_measured(kept: Kept) -> None:
    first = kept.open(BOTH, cost="seconds", trials=8)
    assert not first.run(2, steps=200) and first.search.race.rounds
    before = dict(first.search.seconds)
    kept.truths = {
        name: dataclasses.replace(truth, seconds_per_step=10 * truth.seconds_per_step)
        for name, truth in PLANTED.items()
    }
    second = kept.open([*BOTH, "near"], cost="seconds", trials=32)
    assert second.search.to_be_timed == ["near"]
    assert second.search.race.rounds == first.search.race.rounds
    unfinished = {r.name for r in of_phase(second.search, "race") if not r.ended}
    assert second.run(3)
    check_whole(second)
    assert second.given[:NUM_TIMINGS] == [f"near/timing-{k}" for k in (1, 2, 3)], "before unfinished trainings"
    assert not unfinished & set(second.given[:NUM_TIMINGS])
    assert second.search.seconds == before | {"near": pytest.approx(0.5, rel=0.02)}
    assert second.search.race.joined["near"] > 0


def failing(*numbers: int) -> Callable[[Search, TrialRecord], bool]:
    """The timings of ``fast`` with these numbers fail."""
    return lambda search, record: record.phase == "timing" and record.variant == "fast" and record.number in numbers


def test_a_timing_that_fails_is_made_again_with_another_seed(kept: Kept) -> None:
    kept.fails = failing(1, 3)
    program = kept.open(BOTH, cost="seconds", trials=8)
    assert program.run(2)
    check_whole(program)
    made = [record for record in program.search.timings() if record.variant == "fast"]
    assert [record.status for record in made] == ["failed", "finished", "failed", "finished", "finished"]
    assert len({record.spec.seed for record in made}) == 5
    assert program.search.seconds["fast"] == pytest.approx(0.1, rel=0.02)
    assert kept.open(BOTH, cost="seconds", trials=8).scheduler.is_complete()


def not_timed(kept: Kept) -> Program:
    """A search of which ``fast`` cannot be timed."""
    program = kept.open(("slow", "near", "fast"), cost="seconds", trials=8)
    assert program.run(2)
    check_whole(program)
    search = program.search
    assert json.loads((search.folder / "search.json").read_text())["seconds_per_gradient_evaluation"]["fast"] is None
    assert len(search.timings()) == 3 * NUM_TIMINGS + NUM_SPARE
    assert search.race.failed == {"fast"} and not search.trials_of("fast") and "fast" not in search.refined
    assert standing(search, "fast") == "not timed" and set(search.race.rounds[0].results) == {"slow", "near"}
    again = kept.open(("slow", "near", "fast"), cost="seconds", trials=8)
    assert again.scheduler.is_complete() and outcome(again.search) == outcome(search)
    return program


def test_a_variant_whose_timings_all_fail_is_not_compared_and_the_search_says_why(kept: Kept) -> None:
    kept.fails = failing(1, 2, 3, 4, 5)
    (said,) = [sentence for sentence in answer(not_timed(kept).search) if sentence.startswith("fast")]
    assert said.endswith("none of its 5 timings trained a whole epoch after the first (5 failed).")


def test_a_variant_whose_default_point_diverges_at_once_is_not_compared(kept: Kept) -> None:
    kept.truths = PLANTED | {"fast": Truth(lr_limit=1e-9)}
    (said,) = [sentence for sentence in answer(not_timed(kept).search) if sentence.startswith("fast")]
    assert "seconds per gradient evaluation are not known" in said and said.endswith("(5 diverged).")


def test_with_one_variant_that_can_be_timed_there_is_no_race(kept: Kept) -> None:
    kept.fails = failing(1, 2, 3, 4, 5)
    program = kept.open(BOTH, cost="seconds", trials=8)
    assert program.run(2)
    check_whole(program)
    assert not program.search.race.rounds and program.search.refined == ["slow"]
    assert answer(program.search)[0].startswith("slow is the only variant that could be timed and trained")
    assert standing(program.search, "slow") == "fastest"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"objective": "accuracy"}, "--cost seconds: needs --objective time-to-target and at least two variants"),
        ({"variants": ("sgdm",)}, "--cost seconds: needs --objective time-to-target and at least two variants"),
        ({"cost": "second"}, "--cost 'second': did you mean 'seconds'?"),
    ],
)
def test_a_cost_that_cannot_be_meant_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInput, match=said.replace("?", r"\?")):
        SearchSpec.from_flags(**{"cost": "seconds", **changes})


def test_a_resumed_search_keeps_its_cost() -> None:
    saved = SearchSpec(name="s")
    with pytest.raises(InvalidInput, match="--cost seconds: search 's' was started with gradient-evaluations"):
        refuse_changes(dataclasses.replace(saved, cost="seconds"), saved)
