"""What the search did before variants raced: rungs, random trials and a precedence test.  It is kept as a peer.

Every second trial of a variant was random, and the others were Optuna's.  A trial that was not among the best third of
its variant's trials so far, after a ninth or a third of the budget, was stopped (asynchronous successive halving, Li et
al., arXiv 1810.05934).  The random trials of a variant were compared with those of the baseline: a trial that was
stopped counted as a miss, and times were whole epochs.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence

import numpy as np

from benchmarks.simulated_race import BUDGET, EPOCHS, STEPS_PER_EPOCH, WORLDS, World, draw, run_race, speeds_of
from tuner.report.intervals import holm

RUNGS = tuple(math.ceil(EPOCHS * share) for share in (1 / 9, 1 / 3))
"""Epochs after which trials are compared."""
KEPT = 3
ALPHA, POWER = 0.05, 0.9


def run_trials(times: Sequence[float]) -> tuple[list[float], float]:
    """Whole epochs to the target of one variant's random trials, inf for a miss, and the cost in full trainings.

    ``times`` are what all trials would need, in gradient evaluations.  Two things favour the plan: trials are in the
    right order at the rungs already, and Optuna's trials are no better than random ones, so they stop fewer of these.
    """
    rungs: list[list[float]] = [[] for _ in RUNGS]
    found, cost = [], 0.0
    for i, time in enumerate(times):
        epochs = _stopped_after(time, rungs)
        cost += epochs / EPOCHS
        if i % 2 == 0:
            found.append(float(math.ceil(time / STEPS_PER_EPOCH)) if epochs == EPOCHS and time <= BUDGET else math.inf)
    return found, cost


def precedence_p(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The two-sided p-value of the precedence test.

        p = 2 q(m),    q(m) = prod_{i<m} (n - i) / (n + n' - i)

    The m fastest of all n + n' trials belong to one side, ties excluded.  If the two are alike, the m fastest are all
    of the side that has n with the probability q(m).  Source: Nelson, Technometrics 5 (1963) 491-499.
    """
    # At most one of the two precedes anything.
    sides = (ours, theirs), (theirs, ours)
    (n, others, m), *_ = sorted(
        ((len(a), len(b), sum(time < min(b) for time in a)) for a, b in sides), key=lambda side: -side[2]
    )
    return min(1.0, 2 * math.prod((n - i) / (n + others - i) for i in range(m)))


def decides(world: World, speeds: Sequence[float], num_trials: int, seed: int) -> tuple[bool, float]:
    """Whether the first variant is called faster than the second, the baseline; and the cost of a variant.

    The p-values of all comparisons with the baseline are adjusted by Holm's method.
    """
    generator = np.random.default_rng((seed, num_trials))
    arms, costs = zip(*map(run_trials, draw(world, speeds, num_trials, generator)), strict=True)
    first, baseline, *others = arms
    p_values = [precedence_p(first, baseline), *(precedence_p(other, baseline) for other in others)]
    return min(first) < min(baseline) and holm(p_values)[0] <= ALPHA, float(np.mean(costs))


def trials_needed(
    world: World, speeds: Sequence[float], *, power: float, num: int, most: int = 512
) -> tuple[int | None, float, float]:
    """The least number of trials of a variant that decides in ``power`` of ``num`` cases; the share, and the cost.

    It goes up in steps of an eighth, and is None where ``most`` are too few; then the share is the largest that any
    number had.
    """
    best = (None, 0.0, 0.0)
    trials = 8
    while trials <= most:
        found = [decides(world, speeds, trials, seed) for seed in range(num)]
        share, cost = (float(np.mean([one[i] for one in found])) for i in (0, 1))
        if share >= power:
            return trials, share, cost
        best = max(best, (None, share, cost), key=lambda one: one[1])
        trials += 2 * math.ceil(trials / 16)
    return best


def beside_the_race(num: int) -> dict[str, dict[str, float]]:
    """The race beside the plan: four variants, one of them twice as fast as each other one."""
    found = {}
    for name, world in WORLDS.items():
        speeds = speeds_of(4, 0.5)
        trials, share, cost = trials_needed(world, speeds, power=POWER, num=num)
        costs = [one.cost if one.decided else math.inf for one in (run_race(world, speeds, s) for s in range(num))]
        found[name] = {
            "trials of the plan": trials or math.nan,
            "its power": share,
            "its cost": cost,
            "cost of the race, 90%": float(np.quantile(costs, POWER, method="higher")),
            "decided at a quarter": float(np.mean([own <= cost / 4 for own in costs])),
        }
    return found


def _stopped_after(time: float, rungs: Sequence[list[float]]) -> int:
    for epochs, earlier in zip(RUNGS, rungs, strict=True):
        bisect.insort(earlier, time)
        if time > earlier[math.ceil(len(earlier) / KEPT) - 1]:
            return epochs
    return EPOCHS
