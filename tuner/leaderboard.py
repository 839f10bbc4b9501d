"""The end of a search in one table, a line a variant, and its convergence picture."""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from search_spaces import Variant
from tuner.convergence import TimeToTarget, best_accuracy, target_label, time_to_target
from tuner.objectives import evaluate, rank
from tuner.results import Record, Search
from tuner.settings import Setting, flatten

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
"""Okabe and Ito's colours, told apart by the colour-blind and in print."""
PANELS = 4
"""Panels side by side in the picture of more variants than colours."""
DASHES = ("-", "--", ":", "-.")
"""Where there are more variants than colours, those of a colour differ in this."""

CAPTION = "To a target: epochs / gradient evaluations / seconds of training of the variant's fastest trial to it"


@dataclass(frozen=True, slots=True)
class Row:
    """What the trials of one variant came to."""

    variant: str
    best: Record | None
    """The finished trial with the best objective."""
    best_accuracy: float | None
    """Largest validation accuracy of any trial."""
    fastest: tuple[TimeToTarget | None, ...]
    """For each target, the trial that needed the fewest gradient evaluations."""
    counts: dict[str, int]
    """Trials by how they ended."""
    gradient_evaluations: int
    """All that the variant's trials spent."""


def rows(search: Search) -> list[Row]:
    """One row a variant, the best first; variants without a finished trial come last."""
    made = [_row(search, variant.name) for variant in search.variants]

    def key(row: Row) -> tuple[float, ...]:
        if row.best is None:
            return (1.0,)
        values = evaluate(search.spec.objective, row.best.history, search.spec.targets)
        return (0.0, *rank(search.spec.objective, values), -(row.best_accuracy or 0.0))

    return sorted(made, key=key)


def _row(search: Search, variant: str) -> Row:
    records = search.trials_of(variant)
    fastest = []
    for target in search.spec.targets:
        # A trial that diverged later did not get there.
        steady = [record for record in records if record.status not in ("diverged", "failed")]
        times = [time for record in steady if (time := time_to_target(record.history, target))]
        fastest.append(min(times, key=lambda time: time.gradient_evaluations, default=None))
    return Row(
        variant=variant,
        best=search.best(variant),
        best_accuracy=max((best_accuracy(record.history) for record in records if record.history), default=None),
        fastest=tuple(fastest),
        counts={
            status: sum(record.status == status for record in records)
            for status in ("finished", "stopped", "diverged", "failed")
        },
        gradient_evaluations=sum(record.history[-1].gradient_evaluations for record in records if record.history),
    )


def as_table(search: Search, table_rows: Sequence[Row]) -> Table:
    """For the terminal."""
    table = Table(caption=f"{CAPTION}.", caption_justify="left")
    table.add_column("variant")
    table.add_column("best accuracy", justify="right")
    for target in search.spec.targets:
        table.add_column(f"to {target_label(target)}%", justify="right")
    for status in ("stopped", "diverged", "failed"):
        table.add_column(status, justify="right")
    for row in table_rows:
        table.add_row(*_cells(row), style="bold" if row is table_rows[0] and row.best else "")
    return table


def _cells(row: Row) -> list[str]:
    times = [f"{t.epochs} / {t.gradient_evaluations} / {t.seconds:.1f}" if t else "-" for t in row.fastest]
    accuracy = "-" if row.best_accuracy is None else f"{row.best_accuracy:.4f}"
    return [row.variant, accuracy, *times, *(str(row.counts[status]) for status in ("stopped", "diverged", "failed"))]


def best_settings(row: Row, variants: Sequence[Variant]) -> dict[str, Setting]:
    """The searched settings of a row's best trial, those that exist there."""
    assert row.best is not None
    variant = next(variant for variant in variants if variant.name == row.variant)
    settings: dict[str, Setting] = flatten(row.best.spec.optimizer)  # type: ignore[assignment]
    return {name: settings[name] for name in variant.searched if variant.active(name, settings)}


def write_files(search: Search, table_rows: Sequence[Row]) -> list[Path]:
    """Writes leaderboard.csv, leaderboard.md and convergence.png to the search's folder and returns their paths."""
    paths = [search.folder / name for name in ("leaderboard.csv", "leaderboard.md", "convergence.png")]
    with paths[0].open("w", newline="") as file:
        writer = csv.DictWriter(file, list(_csv_line(search, table_rows[0])))
        writer.writeheader()
        writer.writerows(_csv_line(search, row) for row in table_rows)
    targets = [f"to {target_label(target)}%" for target in search.spec.targets]
    head = ["variant", "best accuracy", *targets, "stopped", "diverged", "failed"]
    lines = [head, ["---"] * len(head), *(_cells(row) for row in table_rows)]
    paths[1].write_text("\n".join("| " + " | ".join(line) + " |" for line in lines) + f"\n\n{CAPTION}.\n")
    draw(search, table_rows, paths[2])
    return paths


def _csv_line(search: Search, row: Row) -> dict[str, object]:
    line: dict[str, object] = {"variant": row.variant, "best_accuracy": row.best_accuracy}
    for target, time in zip(search.spec.targets, row.fastest, strict=True):
        label = target_label(target)
        line[f"epochs_to_{label}"] = time.epochs if time else None
        line[f"gradient_evaluations_to_{label}"] = time.gradient_evaluations if time else None
        line[f"steps_to_{label}"] = time.steps if time else None
        line[f"seconds_to_{label}"] = round(time.seconds, 3) if time else None
    counts = {f"num_{status}": count for status, count in row.counts.items()}
    best = row.best.name if row.best else None
    return {**line, **counts, "best_trial": best, "gradient_evaluations": row.gradient_evaluations}


def line_styles(variants: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Variant -> colour and dashes, no two alike among the first 32."""
    pairs = itertools.cycle(itertools.product(DASHES, COLOURS))
    return {name: (colour, dashes) for name, (dashes, colour) in zip(variants, pairs, strict=False)}


def draw(search: Search, table_rows: Sequence[Row], path: Path) -> None:
    """Validation accuracy against gradient evaluations: every trial thin, the best of each variant thick.

    Where there are more variants than colours each has a panel of its own, with the best of the others in grey.
    """
    from matplotlib.figure import Figure  # costs a third of a second: only where it is needed

    crowded = len(table_rows) > len(COLOURS)
    num_rows, num_columns = (math.ceil(len(table_rows) / PANELS), PANELS) if crowded else (1, 1)
    figure = Figure(figsize=(12, 2.1 * num_rows) if crowded else (8, 5), layout="constrained")
    panels = list(figure.subplots(num_rows, num_columns, sharex=True, sharey=True, squeeze=False).flat)
    styles = line_styles([variant.name for variant in search.variants])
    for index, row in enumerate(table_rows):
        axes, colour = panels[index if crowded else 0], styles[row.variant][0]
        label = f"{row.variant} ({row.best.name if row.best else 'no trial finished'})"
        if crowded:
            axes.set_title(row.variant, fontsize="medium")
            for other in table_rows:
                axes.plot(*_curve(other.best), color="#BBBBBB", linewidth=0.6)
        for record in search.trials_of(row.variant):
            axes.plot(*_curve(record), color=colour, alpha=0.35, linewidth=0.8)
        axes.plot(*_curve(row.best), color=colour, linewidth=2.2, marker="o", markersize=3.5, label=label)
    for axes in panels[: len(table_rows)]:
        for target in search.spec.targets:
            axes.axhline(target, color="#888888", linewidth=0.8, linestyle=":")
        axes.grid(alpha=0.2)
    if crowded:
        for axes in panels[len(table_rows) :]:
            axes.set_visible(False)
        for axes in panels[len(table_rows) - PANELS : len(table_rows)]:
            axes.tick_params(labelbottom=True)
    else:
        panels[0].legend(loc="lower right")
    figure.supxlabel("gradient evaluations", fontsize="medium")
    figure.supylabel("validation accuracy", fontsize="medium")
    figure.suptitle(f"{search.folder.name}: {search.spec.workload}, {search.spec.model}; thick: best trial")
    figure.savefig(path, dpi=130)


def _curve(record: Record | None) -> tuple[list[int], list[float]]:
    history = record.history if record else []
    return [m.gradient_evaluations for m in history], [m.validation_accuracy for m in history]
