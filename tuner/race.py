"""Sequential comparison of variants by rounds: evidence, intervals, and who is out.

In a round, each variant trains the same number of random settings, with the same seeds, and its result is the least
time of these trainings.  Rounds are independent and alike.  So the rounds that order two variants i and j are tosses of
one coin, theta_ij = P(i is faster in a round that orders them), and w of n = w + l of them are won by i.

The functions below hold at all n at once.  One may look after every round, stop at any, and go on later.  They need
scipy alone and are usable without the rest of the program.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

from scipy import optimize, special

Wins = Mapping[tuple[str, str], int]
"""(i, j) -> number of rounds that i won against j; a pair that is missing has 0."""


def log_evidence(won: int, lost: int) -> float:
    """The natural logarithm of :func:`evidence`, which overflows for some thousand rounds."""
    _check(won, lost)
    ours, theirs = won + 0.5, lost + 0.5
    # The incomplete beta function underflows where almost all rounds are lost.
    share = float(special.betainc(theirs, ours, 0.5))
    log_share = math.log(share) if share > 0 else -math.inf
    return (won + lost + 1) * math.log(2) + float(special.betaln(ours, theirs)) - math.log(math.pi) + log_share


def evidence(won: int, lost: int) -> float:
    """The evidence that i is faster than j, in [0, inf]: 1 before the first round, and large for many wins.

        E = 2^(n+1) B(w + 1/2, l + 1/2) / B(1/2, 1/2) I_{1/2}(l + 1/2, w + 1/2),    n = w + l

    B is the beta function and I the regularized incomplete one.  E is the mean of the likelihood ratio
    2^n p^w (1 - p)^l over p in (1/2, 1), with the weights of Jeffreys' Beta(1/2, 1/2).  If theta_ij <= 1/2, it is a
    nonnegative supermartingale that begins at 1, so P(E >= 1/a at any n) <= a for each a in (0, 1).

    Sources: Ville, Etude critique de la notion de collectif (1939), for the inequality; Robbins, Annals of
    Mathematical Statistics 41 (1970) 1397-1409, for mixtures; the weights and the one-sided range are ours.
    Raises ValueError for a negative number.
    """
    log = log_evidence(won, lost)
    return math.inf if log > 709 else math.exp(log)


def interval(won: int, lost: int, level: float = 0.95) -> tuple[float, float]:
    """The interval of theta_ij that holds at all n at once with probability ``level``, in (0, 1).

        { p : B(w + 1/2, l + 1/2) / B(1/2, 1/2) < p^w (1 - p)^l / (1 - level) }

    It contains w/n.  It is (0, 1) before the first round.  The mixture is that of :func:`evidence` over all of (0, 1),
    and the source is the same.  Raises ValueError for a negative number, and for a level outside (0, 1).
    """
    _check(won, lost)
    if not 0 < level < 1:
        raise ValueError(f"level = {level}: must be in (0, 1)")
    bound = float(special.betaln(won + 0.5, lost + 0.5)) - math.log(math.pi) + math.log(1 - level)

    def excess(p: float) -> float:
        return float(special.xlogy(won, p) + special.xlog1py(lost, -p)) - bound

    if won + lost == 0:
        return 0.0, 1.0
    middle = won / (won + lost)
    low = 0.0 if excess(0.0) > 0 else float(optimize.brentq(excess, 0.0, middle)) if won else 0.0
    high = 1.0 if excess(1.0) > 0 else float(optimize.brentq(excess, middle, 1.0)) if lost else 1.0
    return low, high


def round_result(ours: float, theirs: float, end: float, handicap: float = 1.0) -> int:
    """1 if a round is won, -1 if it is lost, 0 if it does not order the two.

    ``ours`` and ``theirs`` are the least times of the two, inf for one that was not reached.  ``end`` is the time up
    to which the round was watched: a time above it is treated as unknown but later.  ``ours`` is multiplied by
    ``handicap`` first: with h, the question is whether ours is at least h times as fast.

    It is ours where h ours < theirs and h ours <= end, and theirs where theirs < h ours and theirs <= end.
    Raises ValueError for a handicap below 1, and for a value that is not a number.
    """
    if handicap < 1:
        raise ValueError(f"handicap = {handicap}: must be at least 1")
    if math.isnan(ours) or math.isnan(theirs) or math.isnan(end):
        raise ValueError(f"ours = {ours}, theirs = {theirs}, end = {end}: must be numbers")
    # A handicap of 1 leaves values that are no times, such as negative accuracies, as they are.
    ours = ours * handicap if handicap > 1 else ours
    if ours == theirs or min(ours, theirs) > end:
        return 0
    return 1 if ours < theirs else -1


def threshold(num_variants: int, alpha: float = 0.05) -> float:
    """The evidence at which a variant is out, (K - 1)/alpha for K variants; inf for alpha 0.

    With probability 1 - alpha, a fastest variant (theta >= 1/2 against all others) is never out: each of the K - 1
    others reaches this evidence against it with probability alpha/(K - 1) at most.  Ours, by the union bound.
    Raises ValueError for fewer than one variant, and for an alpha outside [0, 1).
    """
    if num_variants < 1:
        raise ValueError(f"num_variants = {num_variants}: must be at least 1")
    if not 0 <= alpha < 1:
        raise ValueError(f"alpha = {alpha}: must be in [0, 1)")
    # One variant has no rival.  Its threshold is that of a pair, so that a variant added later can be compared.
    return max(num_variants - 1, 1) / alpha if alpha else math.inf


def wins_needed(num_variants: int, alpha: float = 0.05, lost: int = 0) -> int:
    """Rounds that must be won, with this many lost, for the evidence to reach :func:`threshold`; alpha above 0."""
    needed = math.log(threshold(num_variants, alpha))
    return next(won for won in itertools.count() if log_evidence(won, lost) >= needed)


def share_of_alpha(alpha: float, place: int) -> float:
    """The error rate of the comparisons of a variant that was added to a race, alpha 2^-place, place = 1, 2, ...

    All variants ever added have at most alpha together.  Place 0, a variant of the race's beginning, has alpha itself.
    """
    return alpha * 0.5**place


def eliminated(
    wins: Wins, *, alpha: float = 0.05, planned: int | None = None, added: Sequence[str] = ()
) -> frozenset[str]:
    """The variants that are out: j, once the evidence of some i against j is at least (K - 1)/alpha.

    K is ``planned``, the number of variants when the race began, by default those that ``wins`` names.  It must not
    shrink as variants go out.  ``added`` names those that joined later, in their order: the comparisons of the k-th,
    k = 1, 2, ..., have the error rate alpha 2^-k of their own, over all variants there were before it.

    Wins need not be transitive.  Where every variant would be out, none is.
    Raises ValueError for an alpha outside [0, 1), and for fewer planned variants than 1.
    """
    names = sorted({name for pair in wins for name in pair})
    first = planned if planned is not None else len([name for name in names if name not in added])
    out = set()
    for i, j in wins:
        won, lost = wins[i, j], wins.get((j, i), 0)
        if won > lost and log_evidence(won, lost) >= math.log(pair_threshold(i, j, first, alpha, added)):
            out.add(j)
    return frozenset() if len(out) == len(names) else frozenset(out)


def pair_threshold(i: str, j: str, planned: int, alpha: float, added: Sequence[str] = ()) -> float:
    """The evidence at which i puts j out, or j i: :func:`threshold` by the later one's rivals and error rate."""
    place = max((added.index(name) + 1 for name in (i, j) if name in added), default=0)
    return threshold(planned + place, share_of_alpha(alpha, place))


def _check(won: int, lost: int) -> None:
    if won < 0 or lost < 0:
        raise ValueError(f"won = {won}, lost = {lost}: must be at least 0")
