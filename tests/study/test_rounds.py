"""The race's rounds against an account of them that knows all times beforehand, whatever the order of arrival."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations, product

import numpy as np
import pytest

from tuner import race
from tuner.study.rounds import FIRST_WITH_MEDIAN, Race, Round, quantile

BUDGET, STEP = 160.0, 16.0
"""Of a training: its gradient evaluations, and after how many of them it is asked whether it goes on."""

Times = Mapping[tuple[str, int, int], float | None]
"""Variant, round and slot -> the time of a training that nobody stops; inf for a miss, None for a failure."""


@dataclass
class Case:
    """A race whose times are known."""

    race: Race
    times: Times
    seed: int

    def empty(self) -> Race:
        """The same race before its first training."""
        known = self.race
        return Race(known.variants, known.size, known.num_rounds, known.alpha, known.timed, known.joined)


def drawn(seed: int) -> Case:
    """A random race: of few or many variants, some of them late, with misses and failures, long enough to end."""
    generator = random.Random(seed)
    names = ["a", "b", "c", "d", "e"][: generator.randint(2, 5)]
    joined = {name: generator.randint(1, 5) for name in names[2:] if generator.random() < 0.3}
    size, num_rounds = generator.randint(1, 3), generator.randint(6, 14)
    timed = generator.random() < 0.8
    speeds = {name: generator.uniform(0.4, 1.6) for name in names}
    failing, missing = generator.choice([0.0, 0.02, 0.3]), generator.choice([0.0, 0.2, 0.6])

    def time(name: str) -> float | None:
        if generator.random() < failing:
            return None
        # Now and then, times are multiples of a step, so that some are equal.
        time = 60 / speeds[name] * 2 ** generator.gauss(0, 0.6)
        time = STEP * math.ceil(time / STEP) if generator.random() < 0.2 else time
        missed = generator.random() < missing or time > BUDGET
        return math.inf if missed else time if timed else -time

    times = {place: time(place[0]) for place in product(names, range(num_rounds), range(size))}
    return Case(Race(names, size, num_rounds, generator.choice([0.0, 0.05, 0.3]), timed, joined), times, seed)


@dataclass
class Account:
    """What a race comes to if all its times are known beforehand."""

    rounds: list[dict[str, float]] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    wins: dict[tuple[str, str], int] = field(default_factory=dict)
    out: dict[str, int] = field(default_factory=dict)


def account(case: Case) -> Account:
    """Round by round, by the words of the documentation."""
    known, found = case.race, Account()
    found.wins = dict.fromkeys(permutations(known.variants, 2), 0)
    for number in range(known.num_rounds):
        left = [name for name in known.variants if name not in found.out]
        if len(left) < 2:
            break
        names = [name for name in left if known.joined.get(name, 0) <= number]
        names = names if len(names) > 1 else []
        trained = {name: [case.times[name, number, slot] for slot in range(known.size)] for name in names}
        for name, times in trained.items():
            if times == [None] * known.size:
                found.out[name] = number
        best = {
            name: min(math.inf if time is None else time for time in times)
            for name, times in trained.items()
            if name not in found.out
        }
        end = math.inf
        if known.timed:
            before = [min(times.values()) for times in found.rounds if times]
            end = 1.25 * min(best.values(), default=math.inf)
            end = min(end, 2 * statistics.median(before)) if number >= 3 and before else end
        best = {name: time if time <= end else math.inf for name, time in best.items()}
        found.rounds.append(best)
        found.ends.append(end)
        for i, j in permutations(best, 2):
            found.wins[i, j] += best[i] < best[j]
        among = {pair: won for pair, won in found.wins.items() if set(pair) <= set(best)}
        late = sorted((name for name in known.joined if known.joined[name]), key=lambda n: (known.joined[n], n))
        planned = max(3, len(known.variants) - len(late))
        for name in race.eliminated(among, alpha=known.alpha, planned=planned, added=late):
            found.out[name] = number
    return found


def assert_accounted(ran: Race, expected: Account) -> None:
    assert [one.number for one in ran.rounds] == list(range(len(expected.rounds)))
    assert [dict(one.results) for one in ran.rounds] == expected.rounds
    assert [one.end for one in ran.rounds if one.results] == [
        end for end, results in zip(expected.ends, expected.rounds, strict=True) if results
    ]
    assert (ran.wins, ran.out) == (expected.wins, expected.out)


def train(ran: Race, case: Case, name: str, number: int, slot: int) -> Iterator[None]:
    """A training that asks after each step whether it goes on, as those of a search do."""
    time = case.times[name, number, slot]
    for spent in np.arange(STEP, BUDGET, STEP):
        if time is None or (ran.timed and spent >= time):
            break
        yield
        if not ran.takes_part(name, number) or (ran.timed and spent >= ran.cap(name, number)):
            ran.end(name, number, slot, math.inf)
            return
    ran.end(name, number, slot, time)


def arrive(case: Case, num_workers: int) -> Race:
    """Runs a race with as many trainings at a time, of which a random one is the next to go on."""
    ran, generator = case.empty(), random.Random(case.seed)
    waiting = (
        (name, number, slot)
        for number in range(ran.num_rounds)
        for name, slot in ran.order(number, case.seed)
        if ran.takes_part(name, number)
    )
    live: list[Iterator[None]] = []
    while True:
        while len(live) < num_workers and (place := next(waiting, None)):
            live.append(train(ran, case, *place))
        if not live:
            return ran
        training = generator.choice(live)
        if next(training, "ended") == "ended":
            live.remove(training)


SEEDS = range(60)


@pytest.mark.parametrize("num_workers", [1, 3, 30])
def test_rounds_are_what_they_are_when_nobody_is_stopped_however_many_train_at_a_time(num_workers: int) -> None:
    for seed in SEEDS:
        case = drawn(seed)
        assert_accounted(arrive(case, num_workers), account(case))


def test_rounds_are_counted_in_their_order_whatever_the_order_of_arrival() -> None:
    """As a program finds them that reads an earlier one's results, by variant."""
    for seed in SEEDS:
        case = drawn(seed)
        expected, places = account(case), list(case.times)
        for _ in range(3):
            random.Random(seed).shuffle(places)
            ran = case.empty()
            for place in places:
                ran.end(*place, case.times[place])
            assert_accounted(ran, expected)
            places.sort()


def test_the_races_drawn_here_have_all_that_may_happen() -> None:
    cases = [drawn(seed) for seed in SEEDS]
    accounts = list(map(account, cases))
    ran = [arrive(case, 3) for case in cases]
    assert sum(bool(found.out) for found in accounts) > 20
    assert sum(len(found.rounds) < case.race.num_rounds for case, found in zip(cases, accounts, strict=True)) > 10
    assert sum({} in found.rounds for found in accounts) > 2, "rounds of one variant alone"
    assert sum(bool(one.failed) for one in ran) > 5
    assert sum(bool(one.failed) and len(one.left) > 1 for one in ran) > 2
    median_ended = [
        number
        for found in accounts
        for number, (results, end) in enumerate(zip(found.rounds, found.ends, strict=True))
        if results and 1.25 * min(results.values()) != end < math.inf
    ]
    assert len(median_ended) > 10 and min(median_ended) == 3, "rounds that end by the median of those before"


def test_a_training_may_be_stopped_only_where_its_time_changes_nothing() -> None:
    """The cap is the variant's own best, or else nothing below the end of the round, at every moment."""
    for seed in SEEDS:
        case = drawn(seed)
        expected, ran = account(case), case.empty()
        places = sorted(case.times, key=lambda place: (place[1] + random.Random(str(place)).random() * 2, place))
        for place in places:
            for number, (results, end) in enumerate(zip(expected.rounds, expected.ends, strict=True)):
                for name in results:
                    ended = [case.times[name, number, s] for s in range(ran.size) if ran.has_ended(name, number, s)]
                    own = min((math.inf if time is None else time for time in ended), default=math.inf)
                    assert ran.cap(name, number) == own or end <= ran.cap(name, number) <= own
            ran.end(*place, case.times[place])


def ended(ran: Race, results: Mapping[str, Sequence[float | None]], number: int = 0) -> None:
    """Ends the trainings of a round."""
    for name, times in results.items():
        for slot, time in enumerate(times):
            ran.end(name, number, slot, time)


def test_a_training_ends_at_its_own_best_at_the_slack_and_at_twice_the_median() -> None:
    ran = Race(["a", "b"], 2, 9)
    assert ran.cap("a", 0) == math.inf
    ran.end("a", 0, 0, 60)
    assert (ran.cap("a", 0), ran.cap("b", 0)) == (60, 75), "its own best, and the best of all with a slack of a quarter"
    ran.end("b", 0, 0, 40)
    assert (ran.cap("a", 0), ran.cap("b", 0)) == (50, 40)
    ran.end("b", 0, 1, math.inf)
    ran.end("a", 0, 1, math.inf)
    for number, time in ((1, 100.0), (2, 30.0)):
        assert ran.cap("a", number) == math.inf, "no median of fewer than three"
        ended(ran, {"a": [time, math.inf], "b": [math.inf, math.inf]}, number)
    # Round 1 ends at 125, and both of its trainings of b at nothing: winners at 40, 100 and 30.
    assert ran.cap("a", 3) == ran.cap("b", 3) == 80
    assert ran.cap("a", 4) == math.inf, "the third round may change the median"
    ran.end("a", 3, 0, 70)
    assert (ran.cap("a", 3), ran.cap("b", 3)) == (70, 80), "the lesser of 87.5 and of twice the median"
    assert FIRST_WITH_MEDIAN == 3


def test_nobody_wins_a_round_beyond_twice_the_median_of_the_winning_times_before() -> None:
    ran = Race(["a", "b"], 1, 9)
    for number in range(3):
        ended(ran, {"a": [50.0], "b": [55.0]}, number)
    ended(ran, {"a": [130.0], "b": [101.0]}, 3)
    assert ran.rounds[3] == Round(3, {"a": math.inf, "b": math.inf}, 100)
    assert ran.wins == {("a", "b"): 3, ("b", "a"): 0}
    # A round without a winner counts as one whose winner took longer than all others.
    ended(ran, {"a": [90.0], "b": [99.0]}, 4)
    assert ran.rounds[4] == Round(4, {"a": 90.0, "b": 99.0}, 100)


def test_a_cap_comes_from_nobody_whom_an_earlier_round_may_still_put_out() -> None:
    ran = Race(["a", "b", "c"], 1, 20)
    ended(ran, {"a": [50.0], "b": [55.0], "c": [90.0]})
    assert race.wins_needed(3) == 7
    for number in range(1, 7):  # c is slow, and none of these rounds is counted
        ended(ran, {"b": [20.0]}, number)
        assert ran.cap("c", number) == 25, "six more wins put nobody out"
        ended(ran, {"a": [21.0]}, number)
    ran.end("b", 7, 0, 20)
    assert ran.cap("c", 7) == math.inf, "a won against b already, and may have won six times more"
    ran.end("a", 7, 0, 30)
    assert ran.cap("c", 7) == 37.5 and ran.cap("b", 7) == 20
    ended(ran, {"c": [math.inf]}, 1)
    assert ran.cap("c", 7) == 25, "a lost the first of them"


def test_a_cap_comes_from_nobody_whose_trainings_may_still_all_fail() -> None:
    ran = Race(["a", "b", "c"], 2, 20)
    ran.end("b", 1, 0, 20)
    assert ran.cap("a", 1) == math.inf
    ran.end("b", 0, 0, None)
    assert ran.cap("a", 1) == math.inf
    ran.end("b", 0, 1, math.inf)
    assert ran.cap("a", 1) == 25, "one that misses the target has not failed"


def test_failed_trainings_count_as_misses_and_put_a_variant_out_if_it_has_no_others() -> None:
    ran = Race(["a", "b", "c"], 2, 9)
    ended(ran, {"a": [None, 60.0], "b": [70.0, 80.0], "c": [None, None]})
    assert ran.rounds == [Round(0, {"a": 60, "b": 70}, 75)]
    assert (ran.out, ran.failed, ran.left) == ({"c": 0}, {"c"}, ["a", "b"])
    assert ran.wins["a", "b"] == 1 and ran.wins["a", "c"] == ran.wins["b", "c"] == 0, "it lost to nobody"
    ended(ran, {"a": [50.0, 50.0], "b": [None, 55.0]}, 1)
    assert ran.wins["a", "b"] == 2 and ran.failed == {"c"}


def test_a_failure_that_is_told_twice_is_one() -> None:
    """A search is read again and again; two of three trainings that failed are not all."""
    for _ in range(3):
        ran = Race(["a", "b"], 2, 9)
        for _ in range(2):
            ran.end("a", 0, 0, None)
        ended(ran, {"a": [None, 60.0], "b": [70.0, 80.0]})
        assert not ran.out and ran.wins["a", "b"] == 1


def test_a_round_waits_for_its_last_training_and_the_next_one_for_it() -> None:
    ran = Race(["a", "b"], 1, 9)
    ended(ran, {"a": [50.0], "b": [60.0]}, 1)
    ran.end("b", 0, 0, 60)
    assert ran.rounds == [] and ran.has_ended("b", 0, 0) and not ran.has_ended("a", 0, 0)
    ran.end("a", 0, 0, 70)
    assert [one.results for one in ran.rounds] == [{"a": 70, "b": 60}, {"a": 50, "b": 60}]
    assert ran.wins == {("a", "b"): 1, ("b", "a"): 1}


def test_one_variant_is_left_and_no_further_training_is_of_use() -> None:
    ran = Race(["a", "b"], 1, 9)
    for number in range(7):
        assert ran.takes_part("a", number) and ran.takes_part("b", number + 1) and not ran.takes_part("a", 9)
        assert not ran.is_over
        ended(ran, {"a": [50.0], "b": [60.0]}, number)
        assert not ran.takes_part("a", number), "it is counted"
    assert ran.is_over and ran.out == {"b": 6} and ran.left == ["a"]
    assert not any(ran.takes_part(name, number) for name in "ab" for number in range(9))
    ended(ran, {"a": [60.0], "b": [50.0]}, 7)
    assert len(ran.rounds) == 7


def test_all_rounds_are_counted_and_a_longer_race_goes_on() -> None:
    ran, longer = Race(["a", "b"], 1, 3), Race(["a", "b"], 1, 5)
    for known in (ran, longer):
        for number in range(3):
            ended(known, {"a": [50.0], "b": [60.0]}, number)
    assert ran.is_over and not longer.is_over and longer.takes_part("a", 3)
    assert ran.rounds == longer.rounds


def test_a_race_of_one_variant_is_over() -> None:
    assert Race(["a"], 4, 9).is_over and not Race(["a"], 4, 9).takes_part("a", 0)
    assert Race(["a", "b"], 4, 0).is_over


def test_a_variant_that_joined_later_is_in_no_round_before() -> None:
    ran = Race(["a", "b", "c"], 1, 20, joined={"c": 2})
    assert ran.added == ["c"] and not ran.takes_part("c", 1) and ran.takes_part("c", 2)
    for number in range(2):
        ended(ran, {"a": [50.0], "b": [60.0]}, number)
    ended(ran, {"a": [50.0], "b": [60.0], "c": [40.0]}, 2)
    assert [set(one.results) for one in ran.rounds] == [{"a", "b"}, {"a", "b"}, {"a", "b", "c"}]
    assert ran.rounds[0].result("c", "a") == ran.rounds[0].result("a", "c") == 0
    assert (ran.wins["a", "b"], ran.wins["c", "a"]) == (3, 1)
    # Two have the threshold of three; the one that joined has .025 of its own, over three.
    assert ran.pair_threshold("a", "b") == Race(["a", "b", "c"], 1, 20).pair_threshold("a", "b") == pytest.approx(40)
    assert ran.pair_threshold("a", "c") == ran.pair_threshold("c", "b") == pytest.approx(120)
    assert Race(list("abcd"), 1, 20).pair_threshold("a", "b") == pytest.approx(60)


def test_rounds_of_one_variant_are_passed_over_until_another_joins() -> None:
    """One is left after seven rounds, and when another joins, two further rounds of the first have begun."""
    ran = Race(["a", "b", "c"], 1, 12, joined={"c": 9})
    for number in range(7):
        ended(ran, {"a": [50.0], "b": [60.0]}, number)
    assert [dict(one.results) for one in ran.rounds[7:]] == [{}, {}]
    assert not ran.is_over and ran.takes_part("c", 9) and not ran.takes_part("a", 8)
    ended(ran, {"a": [50.0], "c": [60.0]}, 9)
    assert ran.wins["a", "c"] == 1 and len(ran.rounds) == 10
    # Of the median, only rounds with a result count.
    assert ran.cap("a", 10) == 100


def test_who_joined_when_does_not_depend_on_the_order_in_which_variants_are_listed() -> None:
    joined = {"d": 3, "c": 3, "b": 5}
    races = [Race(names, 1, 9, joined=joined) for names in (["a", "b", "c", "d"], ["d", "c", "a", "b"])]
    assert [one.added for one in races] == [["c", "d", "b"]] * 2
    assert races[0].pair_threshold("a", "d") == races[1].pair_threshold("a", "d") == pytest.approx(4 / 0.0125)


def test_with_alpha_0_nobody_is_out() -> None:
    ran = Race(["a", "b"], 1, 40, alpha=0)
    for number in range(40):
        ended(ran, {"a": [50.0], "b": [60.0]}, number)
    assert ran.wins["a", "b"] == 40 and not ran.out and ran.is_over
    assert ran.pair_threshold("a", "b") == math.inf and ran.evidence("a", "b") > 1e9


def test_another_objective_has_no_end_and_no_cap_but_the_own_best() -> None:
    """Negative accuracies: the largest is the best, however far the others are from it."""
    ran = Race(["a", "b"], 2, 9, timed=False)
    ran.end("a", 0, 0, -0.95)
    assert (ran.cap("a", 0), ran.cap("b", 0)) == (-0.95, math.inf)
    ended(ran, {"a": [-0.95, -0.9], "b": [-0.1, math.inf]})
    assert ran.rounds == [Round(0, {"a": -0.95, "b": -0.1}, math.inf)] and ran.wins["a", "b"] == 1
    for number in range(1, 4):
        ended(ran, {"a": [-0.5, -0.5], "b": [-0.5, -0.9]}, number)
    assert ran.cap("a", 4) == math.inf
    assert ran.wins == {("a", "b"): 1, ("b", "a"): 3}


def test_evidence_is_of_the_rounds_that_ordered_the_two() -> None:
    ran = Race(["a", "b"], 1, 9)
    for number, (a, b) in enumerate([(50.0, 60.0), (50.0, 50.0), (math.inf, math.inf), (60.0, 50.0), (50.0, math.inf)]):
        ended(ran, {"a": [a], "b": [b]}, number)
    assert ran.wins == {("a", "b"): 2, ("b", "a"): 1}
    assert ran.evidence("a", "b") == race.evidence(2, 1) and ran.evidence("b", "a") == race.evidence(1, 2)
    assert ran.evidence("a", "b", handicap=1.1) == race.evidence(2, 2), "the tie is lost, 60 to 55 is not"
    assert ran.evidence("a", "b", handicap=1.24) == race.evidence(1, 3)
    # The last round was watched up to 62.5.
    assert ran.evidence("a", "b", handicap=1.26) == race.evidence(0, 3)


def test_at_least_is_the_largest_handicap_at_which_the_evidence_suffices() -> None:
    found, handicaps = [], np.arange(1, 3, 0.005)
    for seed in range(12):
        generator = np.random.default_rng(seed)
        ran = Race(["a", "b"], 1, 40, alpha=0)
        for number in range(40):
            times = 50 * np.array([1, 1.3]) * 2 ** generator.normal(0, 0.2, 2)
            ended(ran, {"a": [float(times[0])], "b": [float(times[1])]}, number)
        for threshold in (2.0, 20.0):
            enough = [h for h in handicaps.tolist() if ran.evidence("a", "b", h) >= threshold]
            largest = max(enough, default=1.0)
            assert largest <= ran.at_least("a", "b", threshold) + 1e-9 <= largest + 0.005 + 1e-6
            found.append(largest)
            assert ran.at_least("b", "a", threshold) == 1.0
    assert sum(h > 1 for h in found) > 15 and len(set(found)) > 10


def test_each_round_begins_in_another_random_order_of_those_that_are_left() -> None:
    ran = Race(["a", "b", "c"], 4, 40)
    orders = [ran.order(number, seed) for number in range(4) for seed in range(3)]
    assert len(set(map(tuple, orders))) == 12
    assert all(sorted(one) == sorted(product("abc", range(4))) for one in orders)
    assert ran.order(2, 1) == ran.order(2, 1)
    # Who starts first has no cap to begin with, so that all start first equally often.
    first = [ran.order(number, 0)[0][0] for number in range(600)]
    assert min(first.count(name) for name in "abc") > 150
    ran.out["b"] = 0
    assert {name for name, _ in ran.order(1, 0)} == {"a", "c"}


def test_quantiles_are_uniform_and_go_by_name_seed_and_place_alone() -> None:
    drawn = np.array([[quantile(name, 3, place) for place in range(2000)] for name in ("lr.peak", "momentum.value")])
    assert ((drawn >= 0) & (drawn < 1)).all() and len(np.unique(drawn)) == 4000
    for row in drawn:
        assert np.histogram(row, 4, (0, 1))[0] == pytest.approx(500, abs=100)
    assert abs(np.corrcoef(drawn)[0, 1]) < 0.08 and abs(np.corrcoef(drawn[0, 1:], drawn[0, :-1])[0, 1]) < 0.08
    assert [quantile("lr.peak", 3, place) for place in (1999, 64, 63, 0)] == [drawn[0, n] for n in (1999, 64, 63, 0)]
    assert quantile("lr.peak", 4, 0) != drawn[0, 0]
