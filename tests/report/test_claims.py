"""What the comparisons say in words: no more than their intervals give."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.simulated_search import Truth, simulate
from search_spaces import SPACES
from tuner.core.metrics import EpochMetrics
from tuner.core.search_spec import SearchSpec
from tuner.core.serialization import with_settings
from tuner.core.trial_spec import OptimizerSpec
from tuner.report.claims import claims, tuned_against_default, verdict
from tuner.study.results import Point, Search, TrialRecord

Epoch = Callable[..., EpochMetrics]
Costs = Mapping[str, Sequence[float]]
"""Variant -> epochs to the target; inf is a miss."""
Made = Callable[..., Search]
SLOW, FAST = (8, 9, 8, 9, 8, 9), (3, 4, 3, 4, 3, 4)


@pytest.fixture
def made(epoch: Epoch) -> Made:
    """A search in which trainings reached 50% after these epochs of ten gradient evaluations."""

    def curve(cost: float) -> list[EpochMetrics]:
        return [epoch(number, 0.6 if number >= cost else 0.1) for number in range(1, 11)]

    def make(best: Costs, default: Costs | None = None, random: Costs | None = None, **changes: Any) -> Search:
        spec = SearchSpec.from_flags(**{"name": "x", "variants": tuple(best), "targets": (0.5,), **changes})
        search = Search(spec, "id", tuple(SPACES[name] for name in best), Path("x"), {})
        for name in best:
            for number, cost in enumerate((random or {}).get(name, (5,))):
                tuned = {**SPACES[name].default_settings(), "lr.peak": 0.0123}
                trial = spec.trial_spec(with_settings(OptimizerSpec(), tuned), number)
                record = TrialRecord(f"{name}-{number}", name, number, trial, status="finished", arm="random")
                record.history = curve(cost)
                search.records[record.name] = record
            points: tuple[tuple[Point, Sequence[float]], ...] = (
                ("best", best[name]),
                ("default", (default or {}).get(name, ())),
            )
            for point, costs in points:
                for wanted, cost in zip(search.wanted(name, point), costs, strict=False):
                    run = TrialRecord(
                        f"{name}/{point}-{wanted.seed}", name, 1, wanted, "confirm", "finished", curve(cost)
                    )
                    search.records[run.name] = run
        return search

    return make


def text(search: Search) -> str:
    return " ".join(claims(search).sentences)


def test_a_verdict_on_variants_needs_the_luck_of_the_searches(made: Made) -> None:
    arms = {"sgdm": [9, 8, 9, 10, 9, 8, 9, 10], "critical": [3, 2, 3, 4, 3, 2, 3, 4]}
    apart = made({"sgdm": SLOW, "critical": FAST}, random=arms, trials=16)
    (sentence,) = verdict(apart).sentences
    assert re.fullmatch(
        r"critical is faster than sgdm: it reached 50% in 0\.\d+ \[.*\] \(9\d%\) of sgdm's gradient evaluations\. "
        r"This includes the luck of both searches\.",
        sentence,
    )
    assert verdict(apart).tables[0].rows[0][-1] == "faster"
    mixed = made({"sgdm": SLOW, "critical": FAST}, random={**arms, "critical": arms["sgdm"]}, trials=16)
    (sentence,) = verdict(mixed).sentences
    assert sentence.startswith(
        "The settings found for critical are faster than those found for sgdm. With equal seeds, "
    )
    assert "Whether the variant is faster is undecided: once the luck of both searches is included, " in sentence
    assert " is included, the ratio is 0." in sentence
    swapped = made({"sgdm": FAST, "critical": SLOW}, random={"sgdm": arms["critical"], "critical": arms["sgdm"]})
    assert verdict(swapped).sentences[0].startswith("critical is slower than sgdm: it reached 50% in 2.")


def test_random_arms_that_never_arrive_say_nothing_of_the_variants(made: Made) -> None:
    search = made({"sgdm": SLOW, "critical": FAST}, random={"sgdm": [math.inf], "critical": [math.inf]})
    assert verdict(search).sentences[0].endswith("undecided: no random trial of either variant reached the target.")
    search = made({"sgdm": SLOW, "critical": FAST})
    assert "there are too few random trials. A level of 0% is below the 95%" in verdict(search).sentences[0]
    arms = {"sgdm": [5, *[math.inf] * 4], "critical": [5, *[math.inf] * 4]}
    search = made({"sgdm": SLOW, "critical": FAST}, random=arms)
    last = "undecided: once the luck of both searches is included, any ratio is possible."
    assert verdict(search).sentences[0].endswith(last)


def test_what_keeps_a_difference_undecided_is_said(made: Made) -> None:
    (sentence,) = verdict(made({"sgdm": SLOW, "critical": (8, 9, 9, 8, 9, 8)})).sentences
    assert sentence.startswith("Whether critical is faster than sgdm is undecided: critical reached 50% in ")
    (sentence,) = verdict(made({"sgdm": (8, 8, 8), "critical": (4, 4, 4)}, confirm_seeds=3)).sentences
    assert sentence.startswith("Whether critical is faster than sgdm is undecided: ")
    assert sentence.endswith(". A level of 75% is below the 95% that a decision needs.")
    near = (7, 9, 7, 8, 8, 8)  # p below .05 alone, above it among five
    four = {name: SLOW for name in ("nesterov", "sgd", "one-cycle", "adamw")}
    assert verdict(made({"sgdm": SLOW, "critical": near})).sentences[0].startswith("The settings found for critical")
    first = verdict(made({"sgdm": SLOW, "critical": near, **four})).sentences[0]
    assert first.startswith("Whether critical is faster than sgdm is undecided: ")
    assert re.search(r"\. Adjusted for 5 comparisons, p is 0\.\d+\.$", first)


def test_misses_are_told_in_runs(made: Made) -> None:
    never = (math.inf,) * 6
    (sentence,) = verdict(made({"sgdm": never, "critical": FAST})).sentences
    assert "reached 50% in 6 of 6 confirmed runs, sgdm in 0 of 6 confirmed runs" in sentence
    (sentence,) = verdict(made({"sgdm": SLOW, "critical": (*FAST[:5], math.inf)})).sentences
    assert "(critical reached it in 5 of 6 confirmed runs, sgdm in 6 of 6 confirmed runs)" in sentence
    (sentence,) = verdict(made({"sgdm": never, "critical": never})).sentences
    assert sentence == "critical cannot be compared with sgdm: no confirmed run of either reached 50%."


def test_who_is_most_of_a_gain(made: Made) -> None:
    """From 8.5 to 3.5 by the claim; a control at 3.7 has most of it, one at 8.5 little, one at 5.5 about half."""
    shares = {
        "Most of the gain of these settings is the control's": (4, 3, 4, 4, 3, 4),
        "Most of the gain of these settings is not the control's": (8, 9, 9, 8, 8, 9),
        "Whether most of the gain is the control's is undecided": (5, 6, 5, 6, 5, 6),
    }
    for sentence, control in shares.items():
        search = made({"sgdm": SLOW, "critical": FAST, "critical-matched": control})
        said = [words for words in shares if words in text(search)]
        assert said == [sentence]
        assert text(search).startswith("critical reached 50% in 0.4")
        assert ". Its control critical-matched reached 50% in " in text(search)


def test_shares_are_adjusted_for_all_controls(made: Made) -> None:
    some = {"sgdm": SLOW, "lpsgdm": FAST, "lpsgdm-rms": (4, 6, 4, 6, 4, 5)}
    half = {name: (5, 6, 5, 6, 5, 6) for name in ("lpsgdm-fixed", "lpsgdm-dual", "lpsgdm-sign")}
    words = r"Its control lpsgdm-rms reached 50% in .*\. Most of the gain of these settings is the control's\. Compared"
    assert re.search(words, claims(made(some)).sentences[0])
    assert not any(re.search(words, sentence) for sentence in claims(made({**some, **half})).sentences)


def test_a_claim_and_its_control_are_compared_directly_too(made: Made) -> None:
    search = made({"sgdm": SLOW, "critical": FAST, "critical-matched": (4, 3, 4, 4, 3, 4)})
    assert text(search).endswith("of critical-matched's gradient evaluations: no difference between the two is shown.")
    search = made({"sgdm": SLOW, "critical": FAST, "critical-matched": (8, 9, 9, 8, 8, 9)})
    assert text(search).endswith("these settings are faster, and whether the variant is faster is undecided.")
    arms = {"critical": [2, 3, 2, 3, 2, 3], "critical-matched": [9, 8, 9, 8, 9, 8]}
    search = made({"sgdm": SLOW, "critical": FAST, "critical-matched": SLOW}, random=arms)
    assert text(search).endswith("the variant is faster, with the luck of both searches included.")


def test_where_nothing_is_gained_there_is_nothing_to_explain(made: Made) -> None:
    search = made({"sgdm": SLOW, "critical": (9, 8, 9, 8, 9, 8), "critical-matched": FAST})
    assert "No gain is shown that the control could explain" in text(search)
    assert "most of" not in text(search).lower()


@pytest.mark.parametrize("baseline", ["critical", "critical-matched"])
def test_a_baseline_that_is_claim_or_control_is_compared_once(made: Made, baseline: str) -> None:
    search = made({"sgdm": SLOW, "critical": FAST, "critical-matched": SLOW}, baseline=baseline)
    assert text(search).startswith("Compared with its control, critical reached 50% in 0.4")


def test_absent_controls_are_named(made: Made) -> None:
    assert claims(made({"sgdm": SLOW, "adamw": FAST})).sentences == ("No variant of this search has a control.",)
    (sentence,) = claims(made({"sgdm": SLOW, "critical": FAST})).sentences
    assert sentence == (
        "This search lacks a control of critical (critical-matched): the cause of critical's result is not tested."
    )


def test_tuning_is_said_to_pay_only_where_it_does(made: Made) -> None:
    def said(best: Sequence[float], default: Sequence[float]) -> str:
        (sentence,) = tuned_against_default(made({"sgdm": best}, {"sgdm": default}, confirm_seeds=6)).sentences
        return sentence

    assert said(FAST, (8, 9, 8)).endswith("of the default point's gradient evaluations: tuning paid.")
    assert said((8, 9, 8, 9, 8, 9), (3, 4, 3)).endswith(": the default point is faster than the tuned settings.")
    assert said(FAST, (3, 4, 4)).endswith(": the tuned settings are not shown to be better.")
    assert said((4,) * 6, (8, 8, 8)).endswith(
        "not shown to be better. A level of 75% is below the 95% that a decision needs."
    )
    assert "reached 50% in 6 of 6 confirmed runs, the default point in 0 of 3" in said(FAST, (math.inf,) * 3)
    assert said(FAST, ()) == (
        "sgdm: tuned and default settings cannot be compared, because no confirmed run of sgdm's default point has "
        "ended."
    )


def test_a_default_point_that_is_the_best_is_called_so(made: Made) -> None:
    search = made({"sgdm": FAST}, {"sgdm": FAST})
    for record in search.trials_of("sgdm"):
        default = with_settings(OptimizerSpec(), SPACES["sgdm"].default_settings())
        record.spec = dataclasses.replace(record.spec, optimizer=default)
    assert tuned_against_default(search).sentences == ("sgdm: the best settings found are the default point.",)


def test_what_has_not_ended_or_failed_is_named(made: Made) -> None:
    search = made({"sgdm": SLOW, "critical": FAST})
    for run in search.confirmed("critical").values():
        run.status = "running"
    (sentence,) = verdict(search).sentences
    assert sentence.endswith("compared with sgdm: no confirmed run of critical's best settings has ended.")
    (trial,) = search.trials_of("critical")
    trial.status = "diverged"
    assert verdict(search).sentences[0].endswith("no trial of critical finished.")
    search = made({"sgdm": SLOW, "critical": FAST})
    for k, run in search.confirmed("critical").items():
        run.status = "failed" if k % 2 else run.status
    for k, run in search.confirmed("sgdm").items():
        run.status = run.status if k % 2 else "failed"
    assert verdict(search).sentences[0].endswith("no seed has a confirmed run of both.")


def test_one_variant_and_nothing_confirmed(made: Made) -> None:
    assert verdict(made({"sgdm": SLOW})).sentences == (
        "sgdm is the only variant: there is nothing to compare it with.",
    )
    search = made({"sgdm": (), "critical": ()}, confirm_seeds=0)
    for section in (verdict(search), claims(search), tuned_against_default(search)):
        assert section.sentences == ("Nothing was confirmed (--confirm-seeds 0), so no difference can be called real.",)


def test_two_copies_are_never_called_different_variants() -> None:
    """Whole searches, by 40 seeds: sgdm and nesterov train alike here."""
    called = 0
    for seed in range(40):
        spec = SearchSpec(name="x", variants=("sgdm", "nesterov"), trials=8, seed=seed)
        (row,) = verdict(simulate(spec, {"sgdm": Truth(), "nesterov": Truth()})).tables[0].rows
        called += row[-1] != "undecided"
    assert called <= 2
