"""The answer of a search, whose first sentence is enough, in every case that there is."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable

import pytest

from search_spaces import SPACES
from tests.report.racing import MISS, end_rounds, raced, trained
from tuner import race
from tuner.core.metrics import EpochMetrics
from tuner.report.comparison import Comparison, compare
from tuner.report.verdict import answer, half_reached, in_words, leading_pair, pair_sentence, rounds_to_decide, standing
from tuner.study.results import Search

Epoch = Callable[..., EpochMetrics]


def shares(won: int, lost: int) -> dict[str, list[float]]:
    """Times of two variants of which adamw loses so many rounds, and then wins so many."""
    return {"sgdm": [30.0] * lost + [60.0] * won, "adamw": [60.0] * lost + [30.0] * won}


def paired(search: Search) -> Comparison:
    (made,) = compare(search)
    return made


def test_one_that_is_left_is_the_fastest_in_the_first_sentence() -> None:
    search = raced(shares(7, 0), trials=40)
    assert search.race.left == ["adamw"]
    # Seven straight wins are as many as two variants need; each loser was watched to 1.25 times the winner's time.
    assert answer(search) == (
        "adamw is the fastest of 2 variants that may try 1 random setting each (error rate 5%), after 7 rounds: it "
        "won 7 of the 7 rounds that ordered it and sgdm, and is at least 1.25 times as fast.",
    )
    assert standing(search, "adamw") == "fastest" and standing(search, "sgdm") == "out, round 7"


def test_the_factor_is_the_largest_that_as_much_evidence_supports() -> None:
    search = raced({"sgdm": [66, 60, 67, 68, 63, 72, 70], "adamw": [60] * 7})
    # All seven rounds are needed, so the closest of them, which was a tie, is not enough for adamw.
    assert "at least" not in answer(search)[0] and len(search.race.left) == 2
    search = raced({"sgdm": [66, 64.2, 67, 68, 63, 72, 70], "adamw": [60] * 7})
    assert answer(search)[0].endswith("7 of the 7 rounds that ordered it and sgdm, and is at least 1.05 times as fast.")
    search = raced({"sgdm": [66, 60.2, 67, 68, 63, 72, 70], "adamw": [60] * 7})
    assert answer(search)[0].endswith("7 of the 7 rounds that ordered it and sgdm.")


def test_a_baseline_that_won_is_compared_with_the_last_one_out() -> None:
    times = {"sgdm": [30.0] * 12, "adamw": [60.0] * 12, "lion": [25.0, *[60.0] * 11]}
    search = raced(times, trials=40)
    assert search.race.left == ["sgdm"] and search.race.out["adamw"] < search.race.out["lion"]
    assert answer(search)[0].startswith("sgdm is the fastest of 3 variants")
    assert "that ordered it and lion" in answer(search)[0]


def test_rivals_that_no_round_ordered_are_not_counted() -> None:
    """The baseline was put out by another, and no round ordered it and the winner."""
    times = {"sgdm": [90.0] * 7, "lion": [80.0] * 7 + [80.0] * 8, "adamw": [80.0] * 7 + [40.0] * 8}
    search = raced(times, trials=40, alpha=0.1, baseline="lion")
    assert "it and lion" in answer(search)[0]


def test_what_is_left_is_named_with_who_is_out_and_what_would_decide() -> None:
    """sgdm is out after seven rounds; adamw and lion share the rest."""
    a, b = (
        [30.0, 31.0, 30.0, 31.0, 30.0, 30.0, 31.0, 30.0, 30.0],
        [31.0, 30.0, 31.0, 30.0, 31.0, 31.0, 30.0, 31.0, 31.0],
    )
    search = raced({"sgdm": [60.0] * 9, "adamw": a, "lion": b})
    assert set(search.race.out) == {"sgdm"}
    first, second, third = answer(search)
    assert (
        first
        == "adamw and lion are not told apart after 9 rounds of 1 random setting each (error rate 5%); sgdm is out."
    )
    low, high = race.interval(6, 3)
    assert second == (f"adamw won 6 of the 9 rounds that ordered it and lion, a share in [{low:.0%}, {high:.0%}].")
    needed = rounds_to_decide(search, "adamw", "lion")
    assert third == f"At this share, about {needed} rounds would decide: --resume x --trials {needed}."
    assert [standing(search, name) for name in ("sgdm", "adamw", "lion")] == ["out, round 7", "left", "left"]


def test_the_trials_that_are_advised_are_the_rounds_times_their_size() -> None:
    search = raced(shares(3, 1), round_size=1)
    needed = rounds_to_decide(search, "adamw", "sgdm")
    assert needed
    search.spec = type(search.spec)(name="x", variants=("sgdm", "adamw"), round_size=4, trials=16)
    assert answer(search)[-1].endswith(f"about {needed} rounds would decide: --resume x --trials {4 * needed}.")


def test_rounds_that_are_planned_need_no_flag() -> None:
    search = raced(shares(3, 0), trials=7)
    assert answer(search)[-1] == "At this share, about 7 rounds would decide, of 7 that are planned."


def test_of_more_than_two_the_next_one_to_go_is_said() -> None:
    search = raced({"sgdm": [60.0] * 4, "adamw": [30.0] * 4, "lion": [40.0] * 4})
    assert answer(search)[0].startswith("sgdm, adamw and lion are not told apart after 4 rounds")
    i, j = leading_pair(search) or ("", "")
    assert i == "adamw" and f"rounds would put {j} out: " in answer(search)[-1]


def test_many_are_counted_and_not_all_named() -> None:
    search = raced({name: [60.0] for name in tuple(SPACES)[:9]})
    assert re.match(r"(\S+, ){5}\S+ and 3 more are not told apart after 1 round of", answer(search)[0])


def test_equals_are_out_of_reach() -> None:
    search = raced({"sgdm": [30.0, 60.0] * 50, "adamw": [60.0, 30.0] * 50})
    assert leading_pair(search) is None and rounds_to_decide(search, "sgdm", "adamw") is None
    assert answer(search)[1:] == ("None of them won more rounds than another.",)
    search = raced({"sgdm": [30.0, 60.0] * 50 + [60.0], "adamw": [60.0, 30.0] * 50 + [30.0]})
    assert answer(search)[-1] == "At this share, even 10,000 rounds would not decide."


def test_a_circle_is_said_to_be_one() -> None:
    """Each beats the next so often that it would put it out; then none is out."""
    names = ("sgdm", "adamw", "lion")
    search = raced(dict(zip(names, ([60.0], [61.0], [62.0]), strict=True)), trials=100)
    search.race.wins = {(i, j): 30 * ((i, j) in itertools.pairwise((*names, "sgdm"))) for i, j in search.race.wins}
    assert answer(search)[-1] == "Each of them is behind another, so none is out."


@pytest.mark.parametrize(("won", "lost"), [(1, 0), (3, 0), (2, 1), (5, 1), (7, 4), (12, 5)])
@pytest.mark.parametrize("num_ties", [0, 3])
def test_continuing_at_the_share_decides_when_it_is_said(won: int, lost: int, num_ties: int) -> None:
    """The race itself counts the rounds that follow, of which as many are ties as before."""
    found = shares(won, lost)
    for times in found.values():
        times += [60.0] * num_ties
    search = raced(found, trials=1000)
    assert len(search.race.left) == 2
    needed = rounds_to_decide(search, "adamw", "sgdm")
    assert needed == rounds_to_decide(search, "sgdm", "adamw")
    share, ordered, together = (won + 0.5) / (won + lost + 1), won + lost, won + lost + num_ties
    for more in itertools.count(1):
        if round(share * more) > round(share * (more - 1)):
            end_rounds(search, shares(1, 0))
        else:
            end_rounds(search, shares(0, 1))
        if len(search.race.left) == 1:
            break
    # The race above had no further ties.
    assert needed == together + math.ceil(more * together / ordered)
    assert num_ties or needed == len(search.race.rounds)


def test_rounds_are_counted_from_the_beginning_for_a_variant_that_joined_later() -> None:
    search = raced(
        {"sgdm": [60.0] * 5, "adamw": [60.0] * 5}, joined={"lion": 5}, variants=("sgdm", "adamw", "lion"), trials=40
    )
    end_rounds(search, {"sgdm": [60.0], "adamw": [60.0], "lion": [30.0]})
    assert len(search.race.rounds) == 6 and search.race.wins["lion", "sgdm"] == 1
    needed = rounds_to_decide(search, "lion", "sgdm")
    end_rounds(search, {"sgdm": [60.0] * 20, "adamw": [60.0] * 20, "lion": [30.0] * 20})
    won = search.race.out["sgdm"] + 1 - 5
    # All won, where a share of 3/4 was expected after a single round.
    assert needed and needed > 5 + won
    assert race.evidence(won, 0) >= search.race.pair_threshold("lion", "sgdm") > race.evidence(won - 1, 0)


def test_an_added_variant_has_its_error_rate_named() -> None:
    search = raced({"sgdm": [60.0], "adamw": [60.0]}, joined={"lion": 1}, variants=("sgdm", "adamw", "lion"), trials=40)
    assert "(error rate 5%, and 5% more for the added lion)" in answer(search)[0]
    end_rounds(search, {"sgdm": [60.0] * 9, "adamw": [60.0] * 9, "lion": [30.0] * 9})
    assert answer(search)[0].startswith("lion is the fastest of 3 variants")
    assert "(error rate 5%, and 5% more for the added lion)" in answer(search)[0]


def test_small_error_rates_are_not_rounded_to_none() -> None:
    assert "(error rate 0.001)" in answer(raced(shares(1, 0), alpha=0.001))[0]


def test_with_alpha_0_nobody_is_called_the_fastest() -> None:
    search = raced(shares(40, 0), alpha=0.0)
    assert search.race.left == ["sgdm", "adamw"]
    first, second = answer(search)
    assert first == (
        "No variant is called the fastest, because --alpha 0 puts none out of the race: sgdm and adamw tried 1 random "
        "setting each in 40 rounds."
    )
    assert second.startswith("adamw won 40 of the 40 rounds")
    assert rounds_to_decide(search, "sgdm", "adamw") is None


def test_where_all_missed_it_is_said_first_with_what_half_of_them_reached(epoch: Epoch) -> None:
    search = trained(
        raced({"sgdm": [], "adamw": []}, trials=3), epoch, {"sgdm": (0.5, 0.7, 0.1), "adamw": (0.6, 0.3, 0.8)}
    )
    assert len(search.race.rounds) == 3
    # Of .1 .3 .5 .6 .7 .8 half are at least .5; at .6 it would be half too, but of an even number the lower is safe.
    assert half_reached(search) == 0.5
    assert answer(search) == (
        "No training reached 95%, so no round has a winner and no variant is shown to be faster; half of the trainings "
        "reached 50.0%.",
    )
    search.records["sgdm-00"].status = "running"
    assert half_reached(search) == 0.6, "what has not ended may rise"


def test_a_hit_in_a_round_that_is_not_complete_is_a_hit(epoch: Epoch) -> None:
    search = trained(raced({"sgdm": [], "adamw": []}, trials=3), epoch, {"sgdm": (0.5, 0.99), "adamw": (0.6,)})
    assert len(search.race.rounds) == 1
    assert answer(search)[0].startswith("sgdm and adamw are not told apart after 1 round of")


def test_one_variant_and_two_goals_and_no_round() -> None:
    assert answer(raced({"sgdm": []})) == ("sgdm is the only variant: there is nothing to compare it with.",)
    assert answer(raced({"sgdm": [], "adamw": []}, objective="pareto"))[0].startswith(
        "The objective pareto has two goals"
    )
    assert answer(raced({"sgdm": [], "adamw": []}, round_size=4, trials=8)) == (
        "No round of the race is complete yet; a round has 4 trainings of each variant.",
    )


def test_variants_that_train_alike_are_named() -> None:
    times = [60.0, MISS, 50.0, 40.0]
    search = raced({"sgdm": times, "adamw": times, "lion": [61.0, 60.0, 49.0, 41.0]})
    assert "sgdm and adamw trained alike: their results were equal in all rounds that both were in, 4." in answer(
        search
    )
    assert not [one for one in answer(search) if "lion trained alike" in one or "and lion trained" in one]
    assert not [one for one in answer(raced({"sgdm": [MISS], "adamw": [MISS]})) if "alike" in one], "nothing is known"
    once = raced({"sgdm": [60.0], "adamw": [60.0]})
    assert (
        answer(once)[-1] == "sgdm and adamw trained alike: their results were equal in all rounds that both were in, 1."
    )


def test_failures_are_no_verdict() -> None:
    search = raced({"sgdm": [60.0], "adamw": [30.0]}, trials=20)
    search.race.end("sgdm", 1, 0, None)
    search.race.end("adamw", 1, 0, 30.0)
    assert search.race.left == ["adamw"] and standing(search, "sgdm") == "failed, round 2"
    assert answer(search) == (
        "adamw is the only variant that could be trained, so there is nothing to compare it with.",
        "All trainings of sgdm in round 2 failed, so it is not compared.",
    )
    assert paired(search).verdict == "undecided"
    search = raced(
        {"sgdm": [60.0] * 8, "adamw": [30.0] * 8, "lion": [60.0]}, variants=("sgdm", "adamw", "lion"), trials=20
    )
    search.race.end("lion", 1, 0, None)
    for number in range(1, 9):
        search.race.end("sgdm", number, 0, 60.0)
        search.race.end("adamw", number, 0, 30.0)
    assert answer(search)[0].startswith("adamw is the fastest of 2 variants") and "lion" in answer(search)[1]
    search = raced({"sgdm": [60.0], "adamw": [30.0]}, trials=20)
    for name in ("sgdm", "adamw"):
        search.race.end(name, 1, 0, None)
    assert answer(search) == ("No variant could be trained: all trainings of a round failed, so there is no result.",)


def test_an_accuracy_is_better_and_not_faster() -> None:
    accuracies = {"sgdm": [-0.9] * 8, "adamw": [-0.95] * 8}
    search = raced(accuracies, objective="accuracy")
    assert answer(search)[0].startswith("adamw is the best of 2 variants") and "fast" not in " ".join(answer(search))
    assert standing(search, "adamw") == "best"
    assert pair_sentence(search, paired(search)).startswith("adamw is better than sgdm: it won 7 of the 7 rounds")
    assert in_words(search, "slower") == "worse" and in_words(search, "undecided") == "undecided"
    search = raced({"sgdm": [-0.9], "adamw": [-0.95]}, objective="accuracy")
    assert pair_sentence(search, paired(search)).startswith("Whether adamw is better than sgdm is undecided: ")


def test_the_fastest_is_faster_than_each_other_one_on_the_same_evidence() -> None:
    """What is said of the race and of its pairs must not contradict each other."""
    search = raced({"sgdm": [60.0] * 8, "adamw": [30.0] * 8, "lion": [40.0] * 8})
    assert search.race.left == ["adamw"]
    sentences = {made.variant: pair_sentence(search, made) for made in compare(search)}
    low, high = race.interval(7, 0)
    assert sentences["adamw"] == (
        "adamw is faster than sgdm, and at least 1.25 times as fast: it won 7 of the 7 rounds that ordered them, a "
        f"share in [{low:.0%}, {high:.0%}]."
    )
    # No round was watched long enough to order these two.
    assert sentences["lion"] == "No round ordered lion and sgdm."
    slower = {made.variant: made for made in compare(search, baseline="adamw")}
    assert slower["lion"].verdict == slower["sgdm"].verdict == "slower"
    assert pair_sentence(search, slower["sgdm"]).startswith(
        "sgdm is slower than adamw, which is at least 1.25 times as fast: it won 0 of the 7 rounds"
    )


def test_a_variant_that_is_out_is_not_yet_slower_than_who_put_it_out() -> None:
    """With two left, (K - 1)/alpha = 40 puts out; that the two differ is a claim of its own, at 80."""
    search = raced({"sgdm": [60.0] * 7, "adamw": [30.0] * 7, "lion": [30.0] * 7})
    assert search.race.left == ["adamw", "lion"]
    made = compare(search)[0]
    assert made.evidence == race.evidence(7, 0) and made.threshold == pytest.approx(80)
    assert pair_sentence(search, made).endswith(
        f". The evidence of {made.evidence:.3g} put sgdm out, which is thus not the fastest; a verdict on the two "
        "alone needs 80."
    )
    search = raced(shares(3, 0))
    assert pair_sentence(search, paired(search)).endswith("%].") and "put" not in pair_sentence(search, paired(search))


def test_a_pair_that_no_round_ordered() -> None:
    search = raced({"sgdm": [60.0], "adamw": [60.0]})
    assert pair_sentence(search, paired(search)) == "No round ordered adamw and sgdm."
