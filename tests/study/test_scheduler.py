"""The plan of a search from its race to its tests, and of one that is killed, resumed and extended.

Trainings are formulas: ``fast`` is twice as fast as ``slow``, and ``near`` is nearer to it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks.simulated_search import Truth, curve
from search_spaces import Variant
from tests.study.programs import TRUTHS, Kept, check_whole, of_phase, outcome, variant
from tuner.core.errors import InvalidInput
from tuner.core.search_spec import FIRST_REFINE, FIRST_REPEAT, NUM_FINALISTS, NUM_REPEATS, Objective
from tuner.study.objectives import race_time
from tuner.study.refinement import finalists
from tuner.study.results import Search
from tuner.study.trial_record import TrialRecord

THREE = ("slow", "near", "fast")


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    """A search that nobody has worked on yet."""
    return Kept(tmp_path)


def another(kept: Kept, number: int = 0, **changes: Any) -> Kept:
    """The same search in another folder, with nothing in it yet."""
    folder = kept.folder / f"another-{number}"
    folder.mkdir()
    return Kept(folder, **{"truths": kept.truths, "fails": kept.fails, **changes})


def test_a_search_races_then_refines_and_confirms_those_that_are_left_and_then_tests(kept: Kept) -> None:
    program = kept.open(THREE)
    assert not program.scheduler.is_complete()
    assert program.run()
    check_whole(program)
    search = program.search
    assert search.race.left == ["fast"] and len(search.race.rounds) < search.spec.num_rounds
    assert search.refined == ["slow", "fast"], "the first one is the baseline"
    given = [(search.records | search.tests)[name] for name in program.given]
    race_and_tests = [record.phase if record.phase in ("race", "test") else "between" for record in given]
    assert race_and_tests == sorted(race_and_tests, key=["race", "between", "test"].index)
    for name in search.refined:
        phases = [record.phase for record in given if record.variant == name]
        assert phases == sorted(phases, key=["race", "refine", "confirm", "test"].index)
        assert [r.place["index"] for r in of_phase(search, "refine", name) if r.repeats is None] == [0, 1, 2]
        assert len(of_phase(search, "confirm", name)) == 2 + 1
    assert not of_phase(search, "refine", "near") and not of_phase(search, "confirm", "near")
    assert program.scheduler.num_planned == len(search.records)


def test_who_is_out_is_trained_no_more(kept: Kept) -> None:
    alone, beside = kept.open(THREE, trials=64), another(kept).open(THREE, trials=64)
    assert alone.run() and beside.run(5)
    assert set(alone.search.race.out) == {"slow", "near"} and len(set(alone.search.race.out.values())) == 2
    for name, number in alone.search.race.out.items():
        assert max(record.place["round"] for record in of_phase(alone.search, "race", name)) == number
        late = [r for r in of_phase(beside.search, "race", name) if r.place["round"] > number]
        assert len(late) <= 5, "those that trained at that time"


def test_what_trains_as_its_variant_is_put_out_ends_with_its_next_epoch(kept: Kept) -> None:
    """Final accuracies have no cap: else, all would train to their ends."""
    program = kept.open(THREE, objective="accuracy")
    while not program.search.race.out:
        assert not program.run(16, steps=1)
    (out, *_) = program.search.race.out
    running = {r.name: len(r.history) for r in of_phase(program.search, "race", out) if not r.ended}
    assert program.run(16)
    late = [program.search.records[name] for name in running]
    assert late and max(record.place["round"] for record in late) > program.search.race.out[out]
    for record in late:
        # One epoch may have been judged before.
        assert len(record.history) <= running[record.name] + 2
        assert record.status == ("stopped" if len(record.history) < 8 else "finished")
    assert "stopped" in {record.status for record in late}


@pytest.mark.parametrize("num_workers", [2, 5, 16])
def test_with_several_at_a_time_a_race_has_the_rounds_that_it_has_one_at_a_time(kept: Kept, num_workers: int) -> None:
    alone = kept.open(THREE)
    assert alone.run()
    for seed in range(3):
        program = another(kept, seed).open(THREE)
        assert program.run(num_workers, seed=seed)
        check_whole(program)
        assert outcome(program.search) == outcome(alone.search)


def test_early_stopping_changes_no_round_and_saves_much(kept: Kept) -> None:
    spent: dict[bool, int] = {}
    outcomes = []
    for early_stopping in (True, False):
        program = another(kept, int(early_stopping)).open(THREE, early_stopping=early_stopping)
        assert program.run(3)
        check_whole(program)
        outcomes.append(outcome(program.search))
        spent[early_stopping] = sum(r.gradient_evaluations for r in of_phase(program.search, "race"))
        if not early_stopping:
            of_use = [
                r for r in of_phase(program.search, "race") if r.place["round"] <= min(program.search.race.out.values())
            ]
            assert {len(r.history) for r in of_use} == {8}, "all train to the end of their budget"
    assert outcomes[0] == outcomes[1]
    assert spent[True] < 0.6 * spent[False]


def uncapped(kept: Kept, search: Search, name: str, number: int, objective: Objective) -> float:
    """A variant's result of a round, had all its trainings gone on to the end of their budget."""
    times = []
    for record in of_phase(search, "race", name):
        if record.place["round"] == number:
            spec = dataclasses.replace(record.spec, stop_at_target=False)
            history = curve(spec, kept.truths[name])
            status = "diverged" if history[-1].diverged else "finished"
            times.append(race_time(objective, status, history, search.spec.training.targets))
    assert len(times) == search.race.size
    return min(times)


@pytest.mark.parametrize("objective", ["time-to-target", "accuracy", "auc"])
def test_a_round_goes_to_the_variant_with_the_best_of_its_trainings(kept: Kept, objective: Objective) -> None:
    kept.truths = {
        name: dataclasses.replace(truth, lr_limit=0.7, top=top)
        for (name, truth), top in zip(TRUTHS.items(), (0.99, 0.93, 0.9), strict=True)
    }
    program = kept.open(THREE, objective=objective)
    assert program.run(2)
    check_whole(program)
    search = program.search
    assert search.race.out["slow"] < len(search.race.rounds) and search.race.timed == (objective == "time-to-target")
    for one in search.race.rounds:
        results = {name: uncapped(kept, search, name, one.number, objective) for name in one.results}
        assert one.results == {name: time if time <= one.end else math.inf for name, time in results.items()}
    statuses = Counter(record.status for record in of_phase(search, "race"))
    assert statuses["diverged"] > 2
    # The accuracy of the last epoch is known at the end alone; only who is out is stopped.
    assert (statuses["stopped"] > 5) == (objective != "accuracy")
    best = search.best("fast")
    assert best is not None and best.status == "finished"


@pytest.mark.parametrize("objective", ["time-to-target", "accuracy", "auc"])
def test_other_objectives_have_the_same_race_whatever_the_number_of_workers(kept: Kept, objective: Objective) -> None:
    programs = [another(kept, number).open(objective=objective) for number in (1, 4)]
    assert programs[0].run(1) and programs[1].run(4)
    assert outcome(programs[0].search) == outcome(programs[1].search)
    assert programs[0].search.race.out, "nothing was decided"


def test_trainings_of_a_slot_have_equal_seeds_and_quantiles_in_all_variants(kept: Kept) -> None:
    program = kept.open(THREE, seed=3, refine_trials=2)
    assert program.run()
    search = program.search
    by_place: dict[tuple[int, int], list[TrialRecord]] = {}
    for record in of_phase(search, "race"):
        by_place.setdefault((record.place["round"], record.place["slot"]), []).append(record)
    for (number, slot), records in by_place.items():
        assert {record.spec.seed for record in records} == {3 * 1_000_003 + 2 * number + slot}
        assert len({record.spec.optimizer for record in records}) == 1, "the spaces are equal here"
    assert len({records[0].spec.optimizer.lr.peak for records in by_place.values()}) == len(by_place)
    for record in of_phase(search, "refine"):
        first = FIRST_REPEAT + record.place["repeat"] if record.repeats is not None else FIRST_REFINE
        assert record.spec.seed == 3 * 1_000_003 + first + record.place.get("index", 0)


def test_repeats_are_of_the_best_settings_and_of_the_default_point(kept: Kept) -> None:
    kept.truths = TRUTHS | {"fast": dataclasses.replace(TRUTHS["fast"], lr_best=0.8, width=0.6)}
    program = kept.open()
    assert program.run(3)
    search = program.search
    repeats = [record for record in of_phase(search, "refine", "fast") if record.repeats is not None]
    repeated = Counter(record.repeats for record in repeats)
    best = [candidate.trial.number for candidate in search.candidates("fast")[:NUM_FINALISTS]]
    default = next(r.number for r in of_phase(search, "refine", "fast") if r.place.get("point") == "default")
    assert default not in best, "its learning rate is far too small"
    assert repeated == dict.fromkeys([*best, default], NUM_REPEATS)
    assert len({(record.repeats, record.spec.seed) for record in repeats}) == len(repeats)
    for record in repeats:
        assert record.spec.optimizer == search.records[f"fast-{record.repeats:02d}"].spec.optimizer


def test_after_the_race_a_setting_is_tried_until_it_is_worse_than_the_best_unless_its_mean_is_needed(
    kept: Kept,
) -> None:
    kept.truths = TRUTHS | {"fast": dataclasses.replace(TRUTHS["fast"], lr_best=0.8, width=0.6)}
    program = kept.open([variant("slow"), variant("fast")], refine_trials=12)
    assert program.run()
    tried = of_phase(program.search, "refine", "fast")
    spent = {record.name: record.gradient_evaluations for record in tried}
    known = [r for r in program.search.trials_of("fast") if r.phase == "race" and r.status == "finished"]
    best = min(race_time("time-to-target", r.status, r.history, (0.8,)) for r in known)
    for record in tried:
        if record.repeats is None and record.place["index"]:
            assert spent[record.name] <= best + 16, "of an epoch of 16"
        else:
            reached = record.history[-1].validation_accuracy >= 0.8
            assert reached or spent[record.name] == 128
    assert any(r.status == "stopped" for r in tried)
    assert all(r.status != "stopped" for r in tried if r.repeats is not None or r.place.get("point"))


def failing(*places: tuple[str, int, int], attempts: int = 1) -> Any:
    """The trainings of these places fail so many times."""

    def fails(search: Search, record: TrialRecord) -> bool:
        if record.phase != "race":
            return False
        place = (record.variant, record.place["round"], record.place["slot"])
        return place in places and search.num_failed(*place) < attempts

    return fails


@pytest.mark.parametrize(("num_workers", "trials"), [(1, 32), (6, 32), (1, 8), (6, 8)])
def test_a_training_that_fails_is_made_again_and_nothing_else_changes(
    kept: Kept, num_workers: int, trials: int
) -> None:
    """Also where it is the last one of a race, which is decided or has no rounds left."""
    plain = kept.open(THREE, trials=trials)
    assert plain.run()
    last = plain.search.race.rounds[-1]
    places = [("fast", 0, 1), ("slow", 0, 0), ("near", 2, 1)]
    places += [(name, last.number, slot) for name in last.results for slot in (0, 1)]
    program = another(kept, fails=failing(*places)).open(THREE, trials=trials)
    assert program.run(num_workers)
    check_whole(program)
    assert outcome(program.search) == outcome(plain.search)
    for name, number, slot in places:
        made = [r for r in of_phase(program.search, "race", name) if r.place == {"round": number, "slot": slot}]
        assert len(made) == 2 and made[0].status == "failed"
        assert made[0].spec == made[1].spec, "the same settings and seed"


@pytest.mark.parametrize("num_workers", [1, 6])
def test_a_training_that_fails_twice_counts_as_a_miss(kept: Kept, num_workers: int) -> None:
    kept.fails = failing(("fast", 0, 1), ("fast", 1, 0), attempts=2)
    program = kept.open(THREE)
    assert program.run(num_workers)
    check_whole(program)
    failed = Counter(r.place["round"] for r in of_phase(program.search, "race") if r.status == "failed")
    assert failed == {0: 2, 1: 2}
    for number, slot in ((0, 0), (1, 1)):
        (other,) = [r for r in of_phase(program.search, "race", "fast") if r.place == {"round": number, "slot": slot}]
        time = race_time("time-to-target", other.status, other.history, (0.8,))
        one = program.search.race.rounds[number]
        assert one.results["fast"] == (time if time <= one.end else math.inf)
    assert program.search.race.left == ["fast"] and not program.search.race.failed


def test_a_variant_whose_trainings_all_fail_is_out_and_neither_refined_nor_confirmed(kept: Kept) -> None:
    kept.fails = lambda search, record: record.variant == "slow"
    program = kept.open(THREE, confirm="all")
    assert program.run(2)
    check_whole(program)
    search = program.search
    assert search.race.failed == {"slow"} and search.race.out["slow"] == 0 and search.baseline == "slow"
    assert search.refined == ["near", "fast"]
    assert {record.place["round"] for record in of_phase(search, "race", "slow")} <= {0, 1}
    assert kept.open(THREE, confirm="all").scheduler.is_complete()


KILLS = [
    (1, {}),
    (6, {"trials": 10, "confirm": "all"}),
    (3, {"objective": "auc", "refine_trials": 0}),
    (2, {"targets": "auto", "sampler": "cmaes", "confirm_seeds": 0}),
    *(
        pytest.param(*case, marks=pytest.mark.extensive)
        for case in [
            (16, {}),
            (3, {"objective": "accuracy"}),
            (2, {"alpha": 0.0, "trials": 6}),
            (3, {"objective": "pareto", "trials": 5}),
            (3, {"early_stopping": False}),
        ]
    ),
]


@pytest.mark.parametrize(("num_workers", "changes"), KILLS)
def test_killed_at_any_moment_a_search_has_the_race_that_it_has_when_nobody_kills_it(
    kept: Kept, num_workers: int, changes: dict[str, Any]
) -> None:
    failures = failing(("fast", 0, 1), ("near", 1, 0), ("slow", 2, 1), ("fast", 3, 0))
    alone = another(kept, fails=failures).open(THREE, **changes)
    assert alone.run()
    kept.fails = failures
    generator = random.Random(str(changes))
    num_killed, begun = 0, set[str]()
    while True:
        program = kept.open(THREE, **changes)
        assert len({record.spec.seed for record in program.search.pilots()}) == len(program.search.pilots()) <= 3
        begun |= set(program.search.records)
        if program.run(num_workers, seed=num_killed, steps=generator.randrange(1, 250)):
            break
        num_killed += 1
        assert num_killed < 500
    assert num_killed > 4
    check_whole(program)
    assert begun <= set(program.search.records), "nothing is lost"
    assert outcome(program.search) == outcome(alone.search)
    assert program.search.spec.training.targets == alone.search.spec.training.targets
    assert program.search.refined == alone.search.refined
    again = kept.open(THREE, **changes)
    assert again.scheduler.is_complete() and again.run() and again.given == []
    assert outcome(again.search) == outcome(alone.search)


def num_ended(search: Search) -> int:
    return sum(record.ended for record in search.records.values())


def test_killed_after_each_training_a_search_makes_the_trainings_that_it_makes_when_nobody_kills_it(kept: Kept) -> None:
    """Each program ends just one; those that failed are made again by the next."""
    kept.fails = failing(("fast", 0, 0), ("slow", 0, 1), ("fast", 1, 0), attempts=2)
    alone = another(kept).open(trials=12)
    assert alone.run()
    num_programs, done = 0, False
    while not done:
        program = kept.open(trials=12)
        num_before, num_programs = num_ended(program.search), num_programs + 1
        while not done and num_ended(program.search) == num_before:
            done = program.run(steps=1)
    assert num_programs > 30
    check_whole(program)
    assert outcome(program.search) == outcome(alone.search)
    made = [
        sorted((r.name, r.phase, r.spec.seed, r.status, len(r.history)) for r in search.records.values())
        for search in (program.search, alone.search)
    ]
    assert made[0] == made[1], "one at a time, nothing depends on who trained it"


def test_one_that_another_program_made_again_is_not_made_a_third_time(kept: Kept) -> None:
    """The first has failed, and the second is running as the program is killed."""
    kept.fails = failing(("fast", 0, 0))

    def made(search: Search) -> list[TrialRecord]:
        return [r for r in of_phase(search, "race", "fast") if r.place == {"round": 0, "slot": 0}]

    first = kept.open()
    while len(made(first.search)) < 2:
        assert not first.run(3, steps=1)
    assert [record.status for record in made(first.search)] == ["failed", "pending"]
    while made(first.search)[1].status == "pending":
        assert not first.run(3, steps=1)
    assert made(first.search)[1].status == "running"
    second = kept.open()
    assert second.run(2)
    check_whole(second)
    assert [record.status == "failed" for record in made(second.search)] == [True, False]


def test_more_trials_go_on_with_the_race(kept: Kept) -> None:
    few = kept.open(THREE, trials=8)
    assert few.run(2)
    check_whole(few)
    assert len(few.search.race.rounds) == 4 and few.search.race.left == list(THREE) == few.search.refined
    more = kept.open(THREE)
    assert not more.scheduler.is_complete() and outcome(more.search) == outcome(few.search)
    assert more.run(2)
    check_whole(more)
    at_once = another(kept).open(THREE)
    assert at_once.run()
    assert outcome(more.search) == outcome(at_once.search) and more.search.race.left == ["fast"]
    confirmed = {name: more.search.records[name] for name in few.search.records if "confirm" in name}
    assert all(record.ended and record.test for record in confirmed.values()), "also of those that are out now"


def test_confirmed_runs_of_a_variant_that_is_put_out_later_are_ended(kept: Kept) -> None:
    """Killed among them, and resumed with more trials, a search would wait for them for ever."""
    first = kept.open(THREE, trials=8)
    while not any(record.history for record in of_phase(first.search, "confirm", "near")):
        assert not first.run(3, steps=1)
    begun = [record.name for record in of_phase(first.search, "confirm", "near")]
    assert len(begun) == 3 and not all(first.search.records[name].ended for name in begun)
    second = kept.open(THREE)
    assert second.run(3)
    assert "near" in second.search.race.out and "near" not in second.search.refined
    check_whole(second)
    assert all(second.search.records[name].test for name in begun)
    assert second.scheduler.num_planned == len(second.search.records)


def test_settings_that_are_being_tried_are_ended_before_the_race_goes_on(kept: Kept) -> None:
    first = kept.open(THREE, trials=8)
    while not any(record.repeats is not None for record in of_phase(first.search, "refine", "near")):
        assert not first.run(4, steps=1)
    running = {record.name for record in of_phase(first.search, "refine") if not record.ended}
    assert running
    second = kept.open(THREE)
    assert second.run()
    assert set(second.given[: len(running)]) == running
    check_whole(second)


def test_more_settings_and_seeds_go_on_with_the_refinement(kept: Kept) -> None:
    few = kept.open()
    assert few.run()
    best = few.search.best("fast")
    more = kept.open(refine_trials=6, confirm_seeds=3)
    assert not more.scheduler.is_complete() and more.run(2)
    check_whole(more)
    assert outcome(more.search) == outcome(few.search)
    tried = [r for r in of_phase(more.search, "refine", "fast") if r.repeats is None]
    assert len(tried) == 6 and len({record.spec.optimizer for record in tried}) == 6
    assert best is not None and best.name in more.search.records


def test_a_variant_that_is_added_joins_at_the_first_round_that_has_not_begun(kept: Kept) -> None:
    first = kept.open(["slow", "near"], trials=16)
    assert not first.run(3, steps=100)
    begun = 1 + max(record.place["round"] for record in of_phase(first.search, "race"))
    assert 1 <= begun < 8
    second = kept.open(THREE, trials=64)
    assert second.search.race.joined == {"slow": 0, "near": 0, "fast": begun} and second.search.race.added == ["fast"]
    assert not second.run(3, steps=200)
    third = kept.open(THREE, trials=64)
    assert third.search.race.joined["fast"] == begun, "it stays where it joined"
    assert third.run(2)
    check_whole(third)
    for one in third.search.race.rounds:
        assert ("fast" in one.results) == (one.number >= begun)
    assert min(record.place["round"] for record in of_phase(third.search, "race", "fast")) == begun
    assert third.search.race.out.keys() == {"slow", "near"}
    assert kept.open(THREE, trials=64).scheduler.is_complete()


def test_a_variant_that_is_added_to_a_decided_race_meets_the_one_that_is_left(kept: Kept) -> None:
    first = kept.open(["slow", "near"])
    assert first.run()
    assert first.search.race.left == ["near"]
    num_rounds = len(first.search.race.rounds)
    second = kept.open(THREE, trials=64)
    assert not second.scheduler.is_complete() and second.run(4)
    check_whole(second)
    later = second.search.race.rounds[num_rounds:]
    assert later and all(set(one.results) in ({"near", "fast"}, set()) for one in later)
    assert second.search.race.out["slow"] == num_rounds - 1
    assert max(record.place["round"] for record in of_phase(second.search, "race", "slow")) == num_rounds - 1


def test_a_variant_is_refused_where_no_round_is_left_for_it(kept: Kept) -> None:
    first = kept.open(["slow", "near"], trials=8)
    assert first.run()
    names = [study.study_name for study in kept.storage.get_all_studies()]
    with pytest.raises(InvalidInput, match=r"^--variants fast: 4 rounds have begun without it.* --trials 10$"):
        kept.open(THREE, trials=9)
    assert [study.study_name for study in kept.storage.get_all_studies()] == names, "nothing was made for it"
    second = kept.open(THREE, trials=10)
    assert second.search.race.joined["fast"] == 4 and second.run()
    check_whole(second)
    assert set(second.search.race.rounds[4].results) == set(THREE)


def test_what_is_chosen_does_not_depend_on_which_training_ends_first(kept: Kept) -> None:
    """Workers, kills and the order of ends change neither the settings that are tried nor those that are chosen."""
    found = []
    for number, (num_workers, kills) in enumerate([(1, 0), (4, 0), (30, 0), (3, 60)]):
        fresh = another(kept, number)
        program = fresh.open(["near", "fast"], trials=32, alpha=0.0, refine_trials=12)
        while not program.run(num_workers, steps=40 if kills else None, seed=number):
            kills -= 1
            if kills >= 0:
                program = fresh.open(["near", "fast"], trials=32, alpha=0.0, refine_trials=12)
        chosen = [program.search.best(name) for name in ("near", "fast")]
        tried = {record.name: record.spec for record in of_phase(program.search, "refine")}
        found.append((tried, [best.name for best in chosen if best]))
    assert found[0][0] and all(other == found[0] for other in found[1:])


def test_a_search_of_one_variant_that_gets_another_begins_a_race(kept: Kept) -> None:
    first = kept.open(["slow"], trials=5)
    assert first.run(2)
    check_whole(first)
    assert not of_phase(first.search, "race") and first.search.race.is_over
    second = kept.open(["slow", "fast"], trials=32)
    assert second.search.race.joined == {"slow": 0, "fast": 0} and second.run(2)
    assert second.search.race.left == ["fast"] and second.search.race.wins["fast", "slow"] >= 5
    tried = [r.place["index"] for r in of_phase(second.search, "refine", "slow") if r.repeats is None]
    assert sorted(tried) == [0, 1, 2, 3, 4], "what it tried alone is what it has tried"


@pytest.mark.parametrize("changes", [{"variants": ["fast"]}, {"objective": "pareto"}])
def test_without_a_race_all_trials_are_settings_of_each_variants_own(kept: Kept, changes: dict[str, Any]) -> None:
    program = kept.open(changes.pop("variants", ["slow", "fast"]), trials=6, **changes)
    assert program.run(2)
    check_whole(program)
    search = program.search
    assert not of_phase(search, "race") and not search.race.rounds and search.race.is_over
    for one in search.variants:
        tried = [r for r in of_phase(search, "refine", one.name) if r.repeats is None]
        assert [r.place["index"] for r in tried] == list(range(6))
        assert [r.place.get("point") for r in tried] == ["default"] + [None] * 5
        assert (len(search.confirmed(one.name)), len(search.confirmed(one.name, "default"))) == (2, 1)


def test_all_are_confirmed_where_that_is_asked_also_later(kept: Kept) -> None:
    left = kept.open(THREE)
    assert left.run() and left.search.refined == ["slow", "fast"]
    every = kept.open(THREE, confirm="all")
    assert not every.scheduler.is_complete() and every.run()
    check_whole(every)
    assert every.search.refined == list(THREE) and len(of_phase(every.search, "confirm", "near")) == 3
    assert outcome(every.search) == outcome(left.search)


def test_the_baseline_is_confirmed_though_it_is_out(kept: Kept) -> None:
    program = kept.open(THREE, baseline="near")
    assert program.run()
    assert program.search.refined == ["near", "fast"] and "near" in program.search.race.out


def test_without_refinement_the_best_training_of_the_race_is_confirmed(kept: Kept) -> None:
    program = kept.open(refine_trials=0)
    assert program.run()
    check_whole(program)
    assert not of_phase(program.search, "refine")
    times = {
        record.name: race_time("time-to-target", record.status, record.history, (0.8,))
        for record in of_phase(program.search, "race", "fast")
    }
    best = program.search.best("fast")
    assert best is not None and best.name == min(times, key=lambda name: times[name])
    assert {run.spec.optimizer for run in program.search.confirmed("fast").values()} == {best.spec.optimizer}


def test_without_seeds_nothing_is_confirmed_or_tested(kept: Kept) -> None:
    program = kept.open(confirm_seeds=0)
    assert program.run()
    check_whole(program)
    assert of_phase(program.search, "refine") and not of_phase(program.search, "confirm")
    assert not program.search.tests


def test_with_alpha_0_all_have_equal_budgets(kept: Kept) -> None:
    program = kept.open(alpha=0.0)
    assert program.run(4)
    check_whole(program)
    race = program.search.race
    assert not race.out and len(race.rounds) == 16 and race.evidence("fast", "slow") > 100
    assert [len(of_phase(program.search, "race", name)) for name in ("fast", "slow")] == [32, 32]
    assert program.search.refined == ["fast", "slow"]


def test_rounds_that_do_not_fit_are_not_begun(kept: Kept) -> None:
    program = kept.open(trials=7, round_size=3, alpha=0.0)
    assert program.run()
    assert program.search.spec.num_rounds == len(program.search.race.rounds) == 2
    assert len(of_phase(program.search, "race", "slow")) == 6


@pytest.mark.parametrize("num_workers", [1, 7])
def test_the_number_of_planned_trainings_is_never_below_those_made_and_right_at_the_end(
    kept: Kept, num_workers: int
) -> None:
    # The default point of one is the best there is, so that it is no further setting that is trained again.
    kept.truths = TRUTHS | {"fast": Truth(speed=1.0, noise=0.0, jitter=0.0)}
    variants: list[Variant | str] = ["slow", "near"]
    variants += [variant("fast", default={"lr.peak": 0.1, "momentum.value": 0.5})]
    program = kept.open(variants, refine_trials=1)
    planned = [program.scheduler.num_planned]
    most = len(THREE) * (32 + 1 + NUM_REPEATS * (NUM_FINALISTS + 1) + 2 + 1)
    assert planned == [most]
    while not program.run(num_workers, steps=1):
        planned.append(program.scheduler.num_planned)
        assert len(program.search.records) <= planned[-1] <= most
    assert program.scheduler.num_planned == len(program.search.records)
    repeats = Counter(r.variant for r in of_phase(program.search, "refine") if r.repeats is not None)
    most_each = NUM_REPEATS * (NUM_FINALISTS + 1)
    assert repeats["fast"] == most_each - NUM_REPEATS and 0 < repeats["slow"] <= most_each
    again = kept.open(variants, refine_trials=1)
    assert len(again.search.records) <= again.scheduler.num_planned < most


def test_an_area_is_given_up_once_it_can_only_be_larger(kept: Kept) -> None:
    program = kept.open(objective="auc")
    record = program.scheduler.next_trial()
    assert record is not None
    number, slot = record.place["round"], record.place["slot"]
    program.search.race.end(record.variant, number, 1 - slot, 0.25)
    for k, metrics in enumerate(curve(record.spec, Truth(top=0.1, jitter=0.0)), start=1):
        # An error of .9 for k of 8 epochs.
        assert program.scheduler.should_continue(record.name, metrics) == (0.9 * k / 8 < 0.25)
        record.history.append(metrics)


def test_a_variant_without_a_finished_training_has_its_default_point_confirmed_alone(kept: Kept) -> None:
    kept.truths = TRUTHS | {"slow": Truth(lr_limit=1e-9)}
    program = kept.open(["slow", "fast"])
    assert program.run(2)
    search = program.search
    assert {r.status for r in search.trials_of("slow")} <= {"diverged", "stopped"} and search.best("slow") is None
    assert [search.points_of(run) for run in of_phase(search, "confirm", "slow")] == [["default"]]
    assert program.scheduler.is_complete()
    assert kept.open(["slow", "fast"]).scheduler.is_complete()


def test_measured_targets_are_saved_before_the_race_and_kept(kept: Kept) -> None:
    first = kept.open(targets="auto")
    assert first.search.spec.training.targets == ()
    while first.run(2, steps=1) is False and not of_phase(first.search, "race"):
        assert "race" not in {r.phase for r in first.search.records.values()}
    targets = first.search.spec.training.targets
    assert targets and json.loads((kept.folder / "s/search.json").read_text())["targets"] == list(targets)
    second = kept.open(targets="auto")
    assert second.search.spec.training.targets == targets and second.run(2)
    check_whole(second)
    assert not {name for name in second.given if "pilot" in name}
    assert {r.spec.targets for r in second.search.records.values() if r.phase != "pilot"} == {targets}


def test_trainings_that_set_targets_and_fail_are_left_out(kept: Kept) -> None:
    kept.fails = lambda search, record: record.phase == "pilot" and record.number != 2
    first = kept.open(targets="auto", trials=8)
    assert first.run(3)
    assert [record.status for record in first.search.pilots()] == ["failed", "finished", "failed"]
    assert kept.open(targets="auto", trials=8).scheduler.is_complete()


def test_finalists_are_known_from_first_trainings_alone_in_whatever_order_they_are_listed(kept: Kept) -> None:
    """Accuracies are often equal: a program that resumes lists unfinished trials last."""
    program = kept.open(objective="accuracy", trials=16)
    assert program.run(3)
    search = program.search
    numbers = [candidate.trial.number for candidate in finalists(search.candidates("fast"))]
    records = list(search.records.items())
    for seed in range(5):
        random.Random(seed).shuffle(records)
        for _, record in records:
            if record.variant == "fast" and record.status == "finished":
                record.history[-1] = dataclasses.replace(record.history[-1], validation_accuracy=0.9)
        search.records.clear()
        search.records.update(records)
        found = [candidate.trial.number for candidate in search.candidates("fast")]
        assert found == sorted(found) and set(found) >= set(numbers)
