"""Early stopping: asynchronous successive halving, kept apart for each variant.

Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020, arXiv 1810.05934, in its stopping form:
a trial that comes to a rung goes on if it is among the best ``1/reduction`` of the variant's trials that came there so
far.  Variants never meet: one that starts fast would end one that finishes well.
"""

from __future__ import annotations

import math


class Rungs:
    """The rungs of one variant.  Time is the share of the budget spent, in gradient evaluations."""

    def __init__(self, *, reduction: int = 3, num_rungs: int = 2) -> None:
        self.reduction = reduction
        self.shares = [reduction ** -(num_rungs - i) for i in range(num_rungs)]
        """Where the rungs are, rising, in (0, 1): by default at a ninth and a third of the budget."""
        self._accuracies: list[dict[str, float]] = [{} for _ in self.shares]

    def goes_on(self, trial: str, share: float, accuracy: float) -> bool:
        """Records a trial's accuracy at the highest rung it has come to, if it is new there; says whether it goes on.

        Told the same twice, it answers True the second time: a trial that was let through is not judged again.
        The last evaluation (share 1) is neither recorded nor judged: too late to be compared with.
        """
        passed = [accuracies for rung, accuracies in zip(self.shares, self._accuracies, strict=True) if share >= rung]
        if share >= 1 or not passed or trial in passed[-1]:
            return True
        passed[-1][trial] = accuracy
        num_kept = math.ceil(len(passed[-1]) / self.reduction)
        return accuracy >= sorted(passed[-1].values(), reverse=True)[num_kept - 1]
