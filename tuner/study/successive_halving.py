"""Early stopping: asynchronous successive halving, kept apart for each variant.

Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020, arXiv 1810.05934, in its stopping form:
a trial that reaches a rung continues if it is among the best ``1/reduction`` of the variant's trials that have reached
it so far.  Trials of different variants are never compared: one that starts fast would stop one that finishes well.
"""

from __future__ import annotations

import bisect
import math


class SuccessiveHalving:
    """The rungs of one variant.  Time is measured as the share of the budget spent, in gradient evaluations."""

    def __init__(self, *, reduction: int = 3, num_rungs: int = 2) -> None:
        self.reduction = reduction
        self.shares = [reduction ** -(num_rungs - i) for i in range(num_rungs)]
        """Positions of the rungs, increasing, in (0, 1): by default a ninth and a third of the budget."""
        self._judged: list[set[str]] = [set() for _ in self.shares]
        self._accuracies: list[list[float]] = [[] for _ in self.shares]
        """The accuracies at each rung, increasing."""

    def should_continue(self, trial: str, share: float, accuracy: float) -> bool:
        """Records a trial's accuracy at the highest rung it has reached, if it is new there; whether it continues.

        The second call with the same arguments returns True: a trial that was let through is not judged again.
        The last evaluation (share 1) is neither recorded nor judged: it is too late for a fair comparison.
        """
        rung = bisect.bisect(self.shares, share) - 1
        if share >= 1 or rung < 0 or trial in self._judged[rung]:
            return True
        accuracies = self._accuracies[rung]
        self._judged[rung].add(trial)
        bisect.insort(accuracies, accuracy)
        return accuracy >= accuracies[-math.ceil(len(accuracies) / self.reduction)]
