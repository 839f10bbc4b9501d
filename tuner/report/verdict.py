"""The answer of a search in sentences: which variant is fastest, how sure that is, or what it would take to know."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence

from tuner import race
from tuner.core.metrics import best_accuracy, target_label, time_to_target
from tuner.core.search_spec import FIRST_REFINE
from tuner.report.comparison import Comparison, Verdict
from tuner.report.costs import timing_figures
from tuner.study.results import Search
from tuner.study.rounds import Round
from tuner.study.trial_record import TrialRecord

MOST_ROUNDS = 10_000
"""Rounds beyond which an undecided pair counts as out of reach."""
MOST_NAMES = 6
"""Most variants that a sentence names; of more, it says how many there are."""


def answer(search: Search) -> tuple[str, ...]:
    """The verdict of the race; its first sentence is the answer."""
    spec, state = search.spec, search.race
    if len(search.variants) == 1:
        return (f"{search.variants[0].name} is the only variant: there is nothing to compare it with.",)
    if spec.objective == "pareto":
        return ("The objective pareto has two goals, which give no order, so there is no race and no fastest variant.",)
    if not state.rounds and len(state.left) > 1:
        return (f"No round of the race is complete yet; a round has {spec.round_size} trainings of each variant.",)
    if not state.left:
        if not search.not_timed:
            return ("No variant could be trained: all trainings of a round failed, so there is no result.",)
        return ("No variant could be timed and trained, so there is no result.", *_failed(search))
    said = missed(search) or ([_winner(search, state.left[0])] if len(state.left) == 1 else _undecided(search))
    return (*said, *_by_seconds(search), *_failed(search), *_same(search))


def standing(search: Search, variant: str) -> str:
    """A variant's place in the race, in one to three words."""
    state = search.race
    if variant in search.not_timed:
        return "not timed"
    if variant in state.out:
        return f"{'failed' if variant in state.failed else 'out'}, round {state.out[variant] + 1}"
    return _first(search) if len(state.left) == 1 and len(search.variants) > 1 else "left"


def in_words(search: Search, found: Verdict) -> str:
    """A verdict on variants in the word that fits the objective: a larger score is better, not faster."""
    return found if search.race.timed else {"faster": "better", "slower": "worse"}.get(found, found)


def leading_pair(search: Search) -> tuple[str, str] | None:
    """Of two variants that are left, the pair with the most evidence; None before a round ordered any."""
    left, wins = search.race.left, search.race.wins
    pairs = [pair for pair in itertools.permutations(left, 2) if wins[pair] > wins[pair[::-1]]]
    return max(pairs, key=lambda pair: search.race.evidence(*pair), default=None)


def rounds_to_decide(search: Search, i: str, j: str) -> int | None:
    """Rounds of the whole race after which one of a pair would be out, at the share of wins that it has now.

    The share is (w + 1/2)/(n + 1), and as many rounds order the two as did until now.  None for more than 10,000.
    """
    state = search.race
    won, lost = max(state.wins[i, j], state.wins[j, i]), min(state.wins[i, j], state.wins[j, i])
    ordered, needed = won + lost, math.log(state.pair_threshold(i, j))
    if not ordered or math.isinf(needed):
        return None
    share = (won + 0.5) / (ordered + 1)
    together = len(state.shared(i, j))
    for more in range(MOST_ROUNDS):
        gained = round(share * more)
        if race.log_evidence(won + gained, lost + more - gained) >= needed:
            rounds = len(state.rounds) + math.ceil(more * together / ordered)
            return rounds if rounds <= MOST_ROUNDS else None
    return None


def _winner(search: Search, name: str) -> str:
    state, num = search.race, len(search.variants) - len(search.race.failed)
    if num == 1:
        could = "timed and trained" if search.not_timed else "trained"
        return f"{name} is the only variant that could be {could}, so there is nothing to compare it with."
    said = (
        f"{name} is the {_first(search)} of {num} variants that may try {random_settings(search)} each (error "
        f"rate {error_rate(search)}), after {_rounds(len(state.rounds))}"
    )
    last_out = max((out for out in state.out if out not in state.failed), key=lambda out: (state.out[out], out))
    rivals = [rival for rival in (search.baseline, last_out) if rival != name]
    ordered = [rival for rival in rivals if state.wins[name, rival] + state.wins[rival, name]]
    if not ordered:
        return f"{said}."
    won, lost = state.wins[name, ordered[0]], state.wins[ordered[0], name]
    # As sure as the sentence itself: this pair's threshold of the race.
    factor = state.at_least(name, ordered[0], state.pair_threshold(name, ordered[0])) if state.timed else 1.0
    more = f", and is at least {factor:.2f} times as fast" if factor > 1.005 else ""
    return f"{said}: it won {won} of the {_rounds(won + lost)} that ordered it and {ordered[0]}{more}."


def _undecided(search: Search) -> list[str]:
    state, spec, pair = search.race, search.spec, leading_pair(search)
    num, shown = len(state.rounds), _names(state.left)
    out = [variant.name for variant in search.variants if variant.name in state.out.keys() - state.failed]
    gone = f"; {_names(out)} {'is' if len(out) == 1 else 'are'} out" if out else ""
    said = [
        f"{shown} are not told apart after {_rounds(num)} of {random_settings(search)} each (error rate "
        f"{error_rate(search)}){gone}."
    ]
    if not spec.alpha:
        said = [
            f"No variant is called the {_first(search)}, because --alpha 0 puts none out of the race: {shown} tried "
            f"{random_settings(search)} each in {_rounds(num)}."
        ]
    if pair is None:
        return [*said, "None of them won more rounds than another."]
    i, j = pair
    won, lost = state.wins[i, j], state.wins[j, i]
    low, high = race.interval(won, lost)
    said.append(
        f"{i} won {won} of the {_rounds(won + lost)} that ordered it and {j}, a share in [{low:.0%}, {high:.0%}]."
    )
    return [*said, *([_continuing(search, i, j)] if spec.alpha else [])]


def _continuing(search: Search, i: str, j: str) -> str:
    """How many rounds would put j out, and the flags for them."""
    spec, needed = search.spec, rounds_to_decide(search, i, j)
    if needed is None:
        return f"At this share, even {MOST_ROUNDS:,} rounds would not decide."
    if needed <= len(search.race.rounds):
        return "Each of them is behind another, so none is out."
    said = f"At this share, about {needed} rounds would {'decide' if len(search.race.left) == 2 else f'put {j} out'}"
    trials = needed * spec.round_size
    if needed <= spec.num_rounds:
        return f"{said}, of {spec.num_rounds} that are planned."
    return f"{said}: --resume {search.folder.name} --trials {trials}." if trials < FIRST_REFINE else f"{said}."


def missed(search: Search) -> list[str]:
    """Where no training of the race reached the target: that, and the highest score that half of them reached."""
    if search.spec.objective != "time-to-target" or not search.race.rounds:
        return []
    target = search.spec.training.targets[-1]
    if any(math.isfinite(time) for one in search.race.rounds for time in one.results.values()):
        return []
    # A round that is not counted yet may have a hit.
    if any(time_to_target(record.history, target) for record in _raced(search)):
        return []
    return [
        f"No training reached {target_label(target)}%, so no round has a winner and no variant is shown to be faster; "
        f"half of the trainings reached {half_reached(search):.1%}."
    ]


def half_reached(search: Search) -> float:
    """The highest validation score that half of the ended trainings of the race reached."""
    ended = [best_accuracy(record.history) for record in _raced(search) if record.ended]
    return statistics.median_low(ended) if ended else 0.0


def _raced(search: Search) -> list[TrialRecord]:
    return [r for r in list(search.records.values()) if r.phase == "race" and r.status != "failed" and r.history]


def _failed(search: Search) -> list[str]:
    """The variants that left the race without a verdict."""
    found = sorted(search.race.failed, key=lambda name: (search.race.out[name], name))
    return [
        _not_timed(search, name)
        if name in search.not_timed
        else f"All trainings of {name} in round {search.race.out[name] + 1} failed, so it is not compared."
        for name in found
    ]


def _not_timed(search: Search, name: str) -> str:
    """Why nothing is known of a variant's seconds per gradient evaluation."""
    made = [record for record in search.timings() if record.variant == name]
    counts = {status: sum(record.status == status for record in made) for status in ("failed", "diverged")}
    ends = " and ".join(f"{count} {status}" for status, count in counts.items() if count)
    return (
        f"{name} is not compared, because its seconds per gradient evaluation are not known: none of its {len(made)} "
        f"timings trained a whole epoch after the first ({ends})."
    )


def _by_seconds(search: Search) -> list[str]:
    """What fast means where it is not by gradient evaluations."""
    if search.spec.cost != "seconds":
        return []
    said = (
        "Fast is by seconds of training: a training's gradient evaluations times its variant's seconds for one, "
        "measured once on the device of the search"
    )
    ratios = [max(some) / min(some) for name in search.seconds if len(some := timing_figures(search, name)) > 1]
    return [f"{said}; two timings of one variant differ by up to {max(ratios) - 1:.1%}." if ratios else f"{said}."]


def _same(search: Search) -> list[str]:
    """Pairs of variants that needed equally many gradient evaluations in every round, or had equal results."""
    found = []
    for i, j in itertools.combinations([variant.name for variant in search.variants], 2):
        shared, rates = search.race.shared(i, j), [search.cost_of_evaluation(name) for name in (i, j)]
        known = any(math.isfinite(one.results[i] + one.results[j]) for one in shared)
        if not known or not all(_is_same(one, i, j, *rates) for one in shared):
            continue
        said = f"{i} and {j} trained alike: their "
        if rates[0] == rates[1]:
            found.append(f"{said}results were equal in all rounds that both were in, {len(shared)}.")
            continue
        found.append(
            f"{said}gradient evaluations were equal in all rounds that both were in, {len(shared)}, so only their "
            f"measured seconds for one, {rates[0]:.3g} and {rates[1]:.3g}, put them in order."
        )
    return found


def _is_same(one: Round, i: str, j: str, rate_i: float, rate_j: float) -> bool:
    """Whether a round's results can be of the same gradient evaluations."""
    a, b = one.results[i], one.results[j]
    if rate_i == rate_j:
        return a == b
    if math.isinf(a) == math.isinf(b):
        return math.isinf(a) or math.isclose(a * rate_j, b * rate_i)
    # One of them took longer than the round was watched.
    return (a / rate_i * rate_j if math.isinf(b) else b / rate_j * rate_i) > one.end


def pair_sentence(search: Search, made: Comparison) -> str:
    """What the rounds say of a pair of variants."""
    i, j, ordered = made.variant, made.baseline, made.won + made.lost
    if not ordered:
        return f"No round ordered {i} and {j}."
    low, high = made.share
    counts = f"it won {made.won} of the {_rounds(ordered)} that ordered them, a share in [{low:.0%}, {high:.0%}]"
    if made.verdict == "undecided":
        return f"Whether {i} is {in_words(search, 'faster')} than {j} is undecided: {counts}{_but_out(search, made)}."
    factor = ""
    if made.at_least > 1.005:
        subject = "and" if made.verdict == "faster" else "which is"
        factor = f", {subject} at least {made.at_least:.2f} times as fast"
    return f"{i} is {in_words(search, made.verdict)} than {j}{factor}: {counts}."


def _but_out(search: Search, made: Comparison) -> str:
    """Why a verdict on a pair is open although one put the other out of the race."""
    faster, slower = (made.variant, made.baseline)[:: 1 if made.won > made.lost else -1]
    if slower not in search.race.out or made.evidence < search.race.pair_threshold(faster, slower):
        return ""
    return (
        f". The evidence of {made.evidence:.3g} put {slower} out, which is thus not the {_first(search)}; a verdict on "
        f"the two alone needs {made.threshold:.3g}"
    )


def error_rate(search: Search) -> str:
    """The error rate of the race in words, with that of the variants that were added to it."""
    rate = f"{search.spec.alpha:.0%}" if search.spec.alpha >= 0.01 else f"{search.spec.alpha:.2g}"
    added = search.race.added
    return f"{rate}, and {rate} more for the added {_names(added)}" if added else rate


def _first(search: Search) -> str:
    return "fastest" if search.race.timed else "best"


def random_settings(search: Search) -> str:
    """How many settings a variant may try in a round."""
    return f"{search.spec.round_size} random setting{'s' if search.spec.round_size != 1 else ''}"


def _names(names: Sequence[str]) -> str:
    if len(names) > MOST_NAMES:
        return f"{', '.join(names[:MOST_NAMES])} and {len(names) - MOST_NAMES} more"
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def _rounds(number: int) -> str:
    return f"{number} round{'s' if number != 1 else ''}"
