"""What the comparisons say in words: no more than the rounds and the intervals give."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from search_spaces import SPACES
from tests.report.racing import end_rounds
from tuner.core.metrics import EpochMetrics
from tuner.core.search_spec import SearchSpec
from tuner.core.serialization import with_settings
from tuner.core.trial_spec import OptimizerSpec
from tuner.race import evidence, interval
from tuner.report.claims import claims, tuned_against_default, verdict
from tuner.study.results import Search
from tuner.study.trial_record import Point, TrialRecord

Epoch = Callable[..., EpochMetrics]
Costs = Mapping[str, Sequence[float]]
"""Variant -> epochs to the target; inf is a miss."""
Made = Callable[..., Search]
SLOW, FAST = (8, 9, 8, 9, 8, 9), (3, 4, 3, 4, 3, 4)
MANY = 20
"""More rounds than straight wins are needed for any verdict."""


@pytest.fixture
def made(epoch: Epoch) -> Made:
    """A search in which confirmed runs reached 50% within these epochs of ten gradient evaluations, and its rounds.

    A round is one training of each variant, with these times.  The target is reached halfway through the epoch.
    """

    def curve(cost: float) -> list[EpochMetrics]:
        return [epoch(number, 0.9 if number >= cost else 0.1) for number in range(1, 11)]

    def make(best: Costs, default: Costs | None = None, rounds: Costs | None = None, **changes: Any) -> Search:
        values = {"name": "x", "variants": tuple(best), "targets": (0.5,), "trials": MANY, "round_size": 1}
        spec = SearchSpec.from_flags(**{**values, **changes})
        search = Search(spec, "id", tuple(SPACES[name] for name in best), Path("x"), {})
        for name in best:
            tuned = {**SPACES[name].default_settings(), "lr.peak": 0.0123}
            trial = spec.trial_spec(with_settings(OptimizerSpec(), tuned), 0)
            record = TrialRecord(f"{name}-00", name, 0, trial, "refine", "finished", curve(5), {"index": 0})
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
        return end_rounds(search, rounds) if rounds else search

    return make


def text(search: Search) -> str:
    return " ".join(claims(search).sentences)


def test_a_verdict_on_variants_needs_rounds_and_one_on_settings_needs_seeds(made: Made) -> None:
    apart = {"sgdm": [60.0] * MANY, "critical": [30.0] * MANY}
    said, settings = verdict(made({"sgdm": SLOW, "critical": FAST}, rounds=apart)).sentences
    assert said.startswith("critical is faster than sgdm, and at least 1.25 times as fast: it won 7 of the 7 rounds")
    assert re.fullmatch(
        r"The settings chosen for critical are faster than sgdm's: with equal seeds, critical reached 50% in 0\.\d+ "
        r"\[.*\] \(95%\) of sgdm's gradient evaluations\.",
        settings,
    )
    equal = {"sgdm": [60.0, 30.0], "critical": [30.0, 60.0]}
    said, settings = verdict(made({"sgdm": SLOW, "critical": FAST}, rounds=equal)).sentences
    assert said.startswith("Whether critical is faster than sgdm is undecided: it won 1 of the 2 rounds")
    assert settings.startswith("The settings chosen for critical are faster than sgdm's: ")
    # The variant that wins rounds may have been given the worse settings.
    said, settings = verdict(made({"sgdm": FAST, "critical": SLOW}, rounds=apart)).sentences
    assert said.startswith("critical is faster") and settings.startswith("The settings chosen for critical are slower")
    search = made({"sgdm": (), "critical": ()}, rounds=apart, confirm_seeds=0)
    assert len(verdict(search).sentences) == 1


def cells(search: Search) -> dict[str, dict[str, str]]:
    (table,) = verdict(search).tables
    return {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}


def test_the_table_has_what_the_sentences_rest_on(made: Made) -> None:
    rounds = {"sgdm": [60.0, 60.0, 30.0], "critical": [30.0, 30.0, 60.0]}
    row = cells(made({"sgdm": SLOW, "critical": FAST}, rounds=rounds))["critical"]
    assert (row["rounds won"], row["of"], row["the variant is"], row["these settings are"]) == (
        "2", "3", "undecided", "faster"
    )  # fmt: skip
    low, high = interval(2, 1)
    assert row["share won"] == f"[{low:.0%}, {high:.0%}]"
    assert float(row["evidence"]) == pytest.approx(evidence(2, 1), rel=0.01) and row["needed"] == "40"
    nothing = cells(made({"sgdm": (), "critical": ()}))["critical"]
    assert (nothing["share won"], nothing["ratio, these settings"], nothing["these settings are"]) == ("-", "-", "-")
    assert cells(made({"sgdm": SLOW, "critical": FAST}, rounds=rounds, alpha=0.0))["critical"]["needed"] == "-"


def test_what_error_rate_a_verdict_has_is_said_beside_the_table(made: Made) -> None:
    def note(rounds: Costs, **changes: Any) -> str:
        names = dict.fromkeys(rounds, FAST)
        return verdict(made(names, rounds=rounds, **changes)).tables[0].note

    apart, equal = {"sgdm": [60.0] * MANY, "critical": [30.0] * MANY}, {"sgdm": [60.0], "critical": [60.0]}
    assert "critical is the only one left, and so the fastest (error rate 5%)" in note(apart)
    assert "together" not in note(apart), "there are no others"
    assert "The error rate of all of them together is 5%" in note(equal) and "only one left" not in note(equal)
    assert "The error rate of the others together is 10%" in note({**apart, "lion": [60.0] * MANY}, alpha=0.1)
    assert "With --alpha 0, no evidence is enough." in note(apart, alpha=0.0)
    assert "adjusted for 1 comparison (" in note(equal)


def test_objectives_that_are_not_times_are_better_or_worse(made: Made) -> None:
    rounds = {"sgdm": [-0.9] * MANY, "critical": [-0.8] * MANY}
    search = made({"sgdm": SLOW, "critical": FAST}, rounds=rounds, objective="accuracy")
    first, second = verdict(search).sentences
    assert first.startswith("critical is worse than sgdm: it won 0 of the 7 rounds") and "settings" in second
    assert cells(search)["critical"]["the variant is"] == "worse"
    assert cells(search)["critical"]["these settings are"] == "faster", "these are compared by time to target"
    assert "fastest of" not in verdict(search).tables[0].note


def test_two_goals_give_no_verdict_on_variants(made: Made) -> None:
    search = made({"sgdm": SLOW, "critical": FAST}, objective="pareto")
    first, second = verdict(search).sentences
    assert "two goals" in first and second.startswith("The settings chosen for critical are faster")
    assert "round" not in verdict(search).tables[0].note


def test_what_keeps_a_difference_undecided_is_said(made: Made) -> None:
    def settings(best: Costs, **changes: Any) -> str:
        return verdict(made(best, **changes)).sentences[1]

    same = settings({"sgdm": SLOW, "critical": (8, 9, 9, 8, 9, 8)})
    assert same.startswith(
        "The settings chosen for critical are not shown to differ from sgdm's: critical reached 50% in "
    )
    assert same.endswith(" sgdm's gradient evaluations.")
    one = settings({"sgdm": (8,), "critical": (4,)}, confirm_seeds=1)
    assert one.endswith(". A level of 0% is below the 95% that a decision needs.")
    near = (7, 9, 7, 8, 8, 8)  # p below .05 alone, above it among five
    four = {name: SLOW for name in ("nesterov", "sgd", "one-cycle", "adamw")}
    assert settings({"sgdm": SLOW, "critical": near}).startswith("The settings chosen for critical are faster")
    (among,) = [s for s in verdict(made({"sgdm": SLOW, "critical": near, **four})).sentences if "for critical" in s]
    assert "are not shown to differ" in among and re.search(r"\. Adjusted for 5 comparisons, p is 0\.\d+\.$", among)


def test_comparisons_that_the_race_has_made_needless_are_not_adjusted_for(made: Made) -> None:
    """Of four others three are out before anything is confirmed, by rounds with seeds of their own."""
    near: Costs = {"sgdm": SLOW, "critical": (7, 9, 7, 8, 8, 8)}
    gone = ("nesterov", "sgd", "adamw")
    rounds = {"sgdm": [30.0] * MANY, "critical": [30.0] * MANY, **{name: [60.0] * MANY for name in gone}}
    search = made({**near, **dict.fromkeys(gone, ())}, rounds=rounds)
    assert search.race.left == ["sgdm", "critical"]
    (settings,) = [s for s in verdict(search).sentences if "for critical" in s]
    assert settings.startswith("The settings chosen for critical are faster")
    assert "adjusted for 1 comparison (" in verdict(search).tables[0].note


def test_misses_are_told_in_runs(made: Made) -> None:
    never = (math.inf,) * 6
    sentence = verdict(made({"sgdm": never, "critical": FAST})).sentences[1]
    assert (
        "(critical reached it in 6 of 6 confirmed runs, sgdm in 0 of 6 confirmed runs; a miss counts as one past"
        in sentence
    )
    assert sentence.startswith("The settings chosen for critical are faster")
    sentence = verdict(made({"sgdm": SLOW, "critical": (*FAST[:5], math.inf)})).sentences[1]
    assert "(critical reached it in 5 of 6 confirmed runs, sgdm in 6 of 6 confirmed runs; " in sentence
    assert len(verdict(made({"sgdm": never, "critical": never})).sentences) == 1, "nothing to compare"


def test_who_is_most_of_a_gain(made: Made) -> None:
    """From 8 epochs to 3 by the claim; a control at 3.2 has most of it, one at 8 little, one at 5 about half."""
    shares = {
        "Most of the gain of these settings is the control's": (4, 3, 4, 4, 3, 4),
        "Most of the gain of these settings is not the control's": (8, 9, 9, 8, 8, 9),
        "Whether most of the gain is the control's is undecided": (5, 6, 6, 5, 5, 6),
    }
    for sentence, control in shares.items():
        search = made({"sgdm": SLOW, "critical": FAST, "critical-matched": control})
        said = [words for words in shares if words in text(search)]
        assert said == [sentence]
        assert text(search).startswith("critical reached 50% in 0.37 [")
        assert ". Its control critical-matched reached 50% in " in text(search)


def test_shares_are_adjusted_for_all_controls(made: Made) -> None:
    some = {"sgdm": SLOW, "lpsgdm": FAST, "lpsgdm-rms": (4, 6, 4, 6, 4, 5)}
    half = {name: (5, 6, 5, 6, 5, 6) for name in ("lpsgdm-fixed", "lpsgdm-dual", "lpsgdm-sign")}
    words = r"Its control lpsgdm-rms reached 50% in .*\. Most of the gain of these settings is the control's\. No round"
    assert re.search(words, claims(made(some)).sentences[0])
    assert not any(re.search(words, sentence) for sentence in claims(made({**some, **half})).sentences)


def test_a_claim_and_its_control_are_compared_directly_too(made: Made) -> None:
    search = made({"sgdm": SLOW, "critical": FAST, "critical-matched": (4, 3, 4, 4, 3, 4)})
    assert text(search).endswith(
        "of critical-matched's gradient evaluations: no difference between the settings is shown."
    )
    search = made({"sgdm": SLOW, "critical": FAST, "critical-matched": (8, 9, 9, 8, 8, 9)})
    assert text(search).endswith("of critical-matched's gradient evaluations: these settings are faster.")
    rounds = {"sgdm": [60.0] * 4, "critical": [30.0] * 4, "critical-matched": [60.0] * 4}
    search = made({"sgdm": SLOW, "critical": FAST, "critical-matched": SLOW}, rounds=rounds)
    assert "Whether critical is faster than critical-matched is undecided: it won 4 of the 4 rounds" in text(search)


def test_a_claim_over_its_control_needs_evidence_for_all_pairs_unless_it_is_the_fastest(made: Made) -> None:
    """Three variants: 40 puts one out, and 120 calls a pair different."""

    def said(sgdm: Sequence[float], claim: Sequence[float], control: Sequence[float]) -> str:
        rounds = {"sgdm": sgdm, "critical": claim, "critical-matched": control}
        return text(made(dict.fromkeys(rounds, FAST), rounds=rounds, trials=2 * MANY))

    fastest = said([60.0] * MANY, [30.0] * MANY, [60.0] * MANY)
    assert "critical is faster than critical-matched, and at least 1.25 times as fast: it won 7 of the 7" in fastest
    two_left = said([30.0] * 8, [30.0] * 8, [60.0] * 8)
    assert evidence(7, 0) >= 40 > evidence(6, 0)
    assert "Whether critical is faster than critical-matched is undecided: it won 7 of the 7" in two_left
    assert "put critical-matched out" in two_left


def test_where_nothing_is_gained_there_is_nothing_to_explain(made: Made) -> None:
    search = made({"sgdm": SLOW, "critical": (9, 8, 9, 8, 9, 8), "critical-matched": FAST})
    assert "No gain is shown that the control could explain" in text(search)
    assert "most of" not in text(search).lower()


@pytest.mark.parametrize("baseline", ["critical", "critical-matched"])
def test_a_baseline_that_is_claim_or_control_is_compared_once(made: Made, baseline: str) -> None:
    search = made({"sgdm": SLOW, "critical": FAST, "critical-matched": SLOW}, baseline=baseline)
    assert text(search).startswith("No round ordered critical and critical-matched. With the chosen settings, critical")
    assert text(search).count("critical reached 50% in 0.37 [") == 1 and "most of the gain" not in text(search).lower()


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
    assert said((4,) * 6, (8,)).endswith(
        "not shown to be better. A level of 0% is below the 95% that a decision needs."
    )
    missed = said(FAST, (math.inf,) * 3)
    assert (
        "(the tuned settings reached it in 6 of 6 confirmed runs, the default point in 0 of 3 confirmed runs; "
        in missed
    )
    assert missed.endswith("tuning paid.")
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
    def said(search: Search) -> str:
        return next(s for s in tuned_against_default(search).sentences if s.startswith("critical: "))

    both = ({"sgdm": SLOW, "critical": FAST}, {"sgdm": SLOW[:3], "critical": SLOW[:3]})
    search = made(*both)
    for run in search.confirmed("critical").values():
        run.status = "running"
    assert said(search).endswith("because no confirmed run of critical's best settings has ended.")
    (trial,) = search.trials_of("critical")
    trial.status = "diverged"
    assert said(search).endswith("because no trial of critical finished.")
    search = made(*both)
    for k, run in search.confirmed("critical").items():
        run.status = "failed" if k < 3 else run.status
    assert said(search).endswith("because no seed has a confirmed run of both.")
    search = made({"sgdm": SLOW, "critical": ()}, rounds={"sgdm": [30.0] * MANY, "critical": [60.0] * MANY})
    assert said(search).endswith("because critical is out of the race, and only --confirm all confirms such a variant.")


def test_one_variant_and_nothing_confirmed(made: Made) -> None:
    assert verdict(made({"sgdm": SLOW})).sentences == (
        "sgdm is the only variant: there is nothing to compare it with.",
    )
    search = made({"sgdm": (), "critical": ()}, confirm_seeds=0)
    assert tuned_against_default(search).sentences == (
        "Nothing was confirmed (--confirm-seeds 0), so no settings can be compared.",
    )
    assert verdict(search).sentences[0].startswith("No round of the race is complete yet")
    assert claims(search).sentences[0].startswith("This search lacks a control")
