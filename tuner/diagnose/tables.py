"""The lines and tables that a diagnosis prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from rich.markup import escape
from rich.table import Table

from tuner.core.damping import damping_class
from tuner.core.metrics import EpochMetrics
from tuner.diagnose.agreement import Agreement
from tuner.diagnose.attribution import SCORES, Diagnosis, Score
from tuner.diagnose.repair import Outcome, Retrained

MOST_CONFUSIONS = 5
"""Largest number of classes, and of pairs of classes, that are printed."""
BAR = 20
"""Length of the longest bar, in characters."""


def confusions(diagnosis: Diagnosis) -> list[str]:
    """Three lines: the number of errors, the errors by class and those by pair of classes, most frequent first."""
    errors = diagnosis.confusion.copy()
    size, by_class = int(errors.sum()), diagnosis.confusion.sum(axis=1)
    np.fill_diagonal(errors, 0)
    of_class = errors.sum(axis=1)
    worst = sorted(range(len(errors)), key=lambda label: -of_class[label])[:MOST_CONFUSIONS]
    pairs = sorted(zip(*errors.nonzero(), strict=True), key=lambda pair: -errors[pair])[:MOST_CONFUSIONS]
    name = diagnosis.classes
    return [
        f"{diagnosis.num_errors} of {size} images of the {diagnosis.split} split are misclassified "
        f"({diagnosis.num_errors / size:.2%}).",
        "Classes with most errors: "
        + ", ".join(f"{name[k]} ({of_class[k]} of {by_class[k]})" for k in worst if of_class[k])
        + ".",
        "Most frequent confusions: "
        + ", ".join(f"{name[row]} taken for {name[column]} ({errors[row, column]})" for row, column in pairs)
        + ".",
    ]


def damping_line(history: Sequence[EpochMetrics]) -> str | None:
    """The number of under-, critically and overdamped epochs; None if the training did not log damping ratios."""
    classes = Counter(damping_class(m.damping_ratio) for m in history if m.damping_ratio is not None)
    if not classes:
        return None
    said = ", ".join(
        f"{classes[kind]} {kind}damped" if kind != "critical" else f"{classes[kind]} critically damped"
        for kind in ("under", "critical", "over")
        if classes[kind]
    )
    return f"Epochs: {said}."


def ranking_table(diagnosis: Diagnosis, score: Score, chosen: Sequence[str]) -> Table:
    """One row per group in the order of ``score``, with all scores and a bar for ``score``."""
    table = Table(caption=f"Ranked by the {score} score. A repair retrains those with *.", caption_justify="left")
    table.add_column("layer group", no_wrap=True)
    table.add_column("parameters", justify="right")
    for name in SCORES:
        table.add_column(name, justify="right")
    table.add_column("")
    ranked = diagnosis.ranking(score)
    most = max((g.scores[score] for g in ranked if np.isfinite(g.scores[score])), default=0.0) or 1.0
    for group in ranked:
        bar = "█" * round(BAR * min(group.scores[score] / most, 1.0))
        numbers = [f"{group.scores[name]:.3g}" for name in SCORES]
        mark = " *" if group.group.name in chosen else ""
        table.add_row(escape(group.group.name) + mark, str(group.num_parameters), *numbers, bar)
    return table


def repair_table(before: float, rows: Sequence[tuple[Retrained, Outcome]]) -> Table:
    """One row for the repair and for each control: the groups, the cost and the result on the test split."""
    size = rows[0][1].num_images
    table = Table(
        caption=f"Fixed, broken and net count images of the test split, which has {size}; net has its 95% interval. "
        "Cost counts operations, in epochs that train all groups. Epoch is the best of those trained, by accuracy on "
        f"the validation split; 0 is the network before the repair, with {before:.2%}.",
        caption_justify="left",
    )
    for column in ("retrained", "groups", "parameters", "cost", "epoch", "validation", "fixed", "broken", "net"):
        table.add_column(column, justify="left" if column in ("retrained", "groups") else "right", overflow="fold")
    for retrained, outcome in rows:
        low, high = outcome.net_interval()
        table.add_row(
            retrained.name,
            "all" if retrained.parameter_share == 1 else escape(", ".join(retrained.groups)),
            f"{retrained.parameter_share:.0%}",
            f"{retrained.cost:.1f}",
            f"{retrained.epoch} of {retrained.epochs}",
            f"{retrained.validation_accuracy:.2%}",
            str(outcome.num_fixed),
            str(outcome.num_broken),
            f"{outcome.net:+d} [{low:+.1f}, {high:+.1f}]",
        )
    return table


def agreement_table(names: Sequence[str], rankings: Sequence[Sequence[str]], num_named: int, found: Agreement) -> Table:
    """One row per run with its first groups, and a caption on what pairs of runs share."""
    kinds = Counter(pair.shared for pair in found.pairs.values())
    shares = ", ".join(f"{shared} in {count}" for shared, count in sorted(kinds.items(), reverse=True))
    tau = float(np.nanmean([pair.tau for pair in found.pairs.values()]))
    table = Table(
        caption=f"Each run names {num_named} groups. Two runs share {found.mean_shared:.2f} of them on average "
        f"({shares} of {len(found.pairs)} pairs). Chance gives {found.expected_shared:.2f}; p = {found.p_value:.2g}. "
        f"Kendall's rank correlation over all {len(rankings[0])} groups is {tau:.2f} on average.",
        caption_justify="left",
    )
    table.add_column("run", no_wrap=True)
    table.add_column("named", overflow="fold")
    for name, ranking in zip(names, rankings, strict=True):
        table.add_row(escape(name), escape(", ".join(ranking[:num_named])))
    return table
