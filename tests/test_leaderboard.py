"""The table at the end: who is best, how fast, how many fell, and the files that say so."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from search_spaces import Variant
from tuner.leaderboard import as_table, best_settings, line_styles, rows, write_files
from tuner.ledger import Ledger
from tuner.spec import EpochMetrics

Epoch = Callable[..., EpochMetrics]
Toy = Callable[..., Variant]
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader:DeprecationWarning")

CURVES: dict[str, list[list[float]]] = {
    # Variant -> the accuracies of its trials, the last negative where it diverged; three epochs are the budget.
    "slow": [[0.1, 0.2, 0.6], [0.1, 0.2, 0.9]],
    "fast": [[0.1, 0.7], [0.3, 0.85, 0.8]],
    "wild": [[0.99, -1.0], []],
}
Ended = Callable[..., Ledger]


@pytest.fixture
def ended(open_ledger: Callable[..., Ledger], toy: Toy, epoch: Epoch) -> Ended:
    """A search whose trials had these curves."""

    def run(curves: dict[str, list[list[float]]] = CURVES, **changes: Any) -> Ledger:
        ledger = open_ledger(
            [toy(name) for name in curves], **{"trials": 2, "epochs": 3, "targets": (0.5, 0.84), **changes}
        )
        while (record := ledger.next_trial()) is not None:
            ledger.start(record.name)
            for number, accuracy in enumerate(curves[record.variant][record.number], start=1):
                metrics = epoch(number, max(accuracy, 0.0), budget=30, diverged=accuracy < 0)
                ledger.record(record.name, metrics, 0.1)
            ledger.end(record.name, failure=None if record.history else "it broke")
        ledger.tracking.finish("finished", {}, [], timeout=60)
        ledger.folder.mkdir()
        return ledger

    return run


def test_the_best_comes_first_and_who_finished_nothing_last(ended: Ended) -> None:
    table = rows(ended())
    assert [row.variant for row in table] == ["fast", "slow", "wild"]
    assert [row.best.name if row.best else None for row in table] == ["fast-01", "slow-01", None]
    assert [row.best_accuracy for row in table] == [0.85, 0.9, 0.99]
    assert [row.gradient_evaluations for row in table] == [50, 60, 20]


def test_the_objective_decides(ended: Ended) -> None:
    table = rows(ended(objective="accuracy"))
    assert [(row.variant, row.best.name if row.best else None) for row in table] == [
        ("slow", "slow-01"),
        ("fast", "fast-01"),
        ("wild", None),
    ]


def test_counts_are_of_every_ending(ended: Ended) -> None:
    counts = {row.variant: row.counts for row in rows(ended())}
    none = dict.fromkeys(("finished", "stopped", "diverged", "failed"), 0)
    assert counts["fast"] == none | {"finished": 1, "stopped": 1}
    assert counts["slow"] == none | {"finished": 2}
    assert counts["wild"] == none | {"diverged": 1, "failed": 1}


def test_times_are_of_the_fastest_trial_to_each_target(ended: Ended) -> None:
    """All of the wild variant's trials diverged, after they had been at the targets."""
    fastest = {row.variant: row.fastest for row in rows(ended())}
    for variant, epochs in [("fast", (2, 2)), ("slow", (3, 3)), ("wild", (None, None))]:
        assert tuple(time.epochs if time else None for time in fastest[variant]) == epochs
        assert tuple(time.gradient_evaluations if time else None for time in fastest[variant]) == tuple(
            number and 10 * number for number in epochs
        )


def test_equally_fast_variants_are_ordered_by_accuracy(ended: Ended) -> None:
    curves = {"one": [[0.1, 0.85, 0.86]], "two": [[0.1, 0.85, 0.97]]}
    assert [row.variant for row in rows(ended(curves, trials=1))] == ["two", "one"]


def test_the_files_say_what_the_table_says(ended: Ended) -> None:
    ledger = ended(targets=(0.5, 0.925))
    table = rows(ledger)
    paths = write_files(ledger, table)
    assert [path.name for path in paths] == ["leaderboard.csv", "leaderboard.md", "convergence.png"]
    lines = list(csv.DictReader(io.StringIO(paths[0].read_text())))
    assert [line["variant"] for line in lines] == [row.variant for row in table]
    slow = next(line for line in lines if line["variant"] == "slow")
    assert slow["epochs_to_50"] == "3" and slow["epochs_to_92.5"] == "" and slow["best_trial"] == "slow-01"
    assert (slow["num_finished"], slow["num_failed"], slow["gradient_evaluations"]) == ("2", "0", "60")
    markdown = paths[1].read_text().splitlines()
    assert markdown[0] == "| variant | best accuracy | to 50% | to 92.5% | stopped | diverged | failed |"
    assert {line.count("|") for line in markdown[:5]} == {8}
    assert paths[2].read_bytes().startswith(b"\x89PNG")


def test_the_terminal_shows_every_variant(ended: Ended) -> None:
    ledger = ended()
    console = Console(file=io.StringIO(), width=120)
    console.print(as_table(ledger, rows(ledger)))
    assert isinstance(console.file, io.StringIO)
    printed = console.file.getvalue()
    assert "2 / 20 / 1.0" in printed and "0.8500" in printed and all(variant in printed for variant in CURVES)


def test_a_search_in_which_nothing_finished_has_its_files_too(ended: Ended) -> None:
    ledger = ended({"wild": [[-1.0], []]})
    table = rows(ledger)
    assert table[0].best is None
    assert all(path.stat().st_size for path in write_files(ledger, table))
    Console(file=io.StringIO()).print(as_table(ledger, table))


def test_a_search_that_was_stopped_before_its_first_trial_has_a_table(
    open_ledger: Callable[..., Ledger], toy: Toy
) -> None:
    ledger = open_ledger([toy("one")])
    ledger.folder.mkdir()
    table = rows(ledger)
    assert table[0].best is None and table[0].best_accuracy is None and table[0].fastest == (None, None)
    write_files(ledger, table)
    ledger.tracking.finish("interrupted", {}, [], timeout=60)


def test_the_winners_searched_settings(ended: Ended) -> None:
    ledger = ended()
    winner = rows(ledger)[0]
    assert winner.best is not None
    optimizer = winner.best.spec.optimizer
    assert best_settings(winner, ledger.variants) == {
        "lr.peak": optimizer.lr.peak,
        "momentum.value": optimizer.momentum.value,
    }


def test_thirty_two_variants_are_drawn_in_as_many_styles() -> None:
    names = [f"v{number}" for number in range(33)]
    styles = line_styles(names)
    assert list(styles) == names and len(set(styles.values())) == 32
    assert len({colour for colour, _ in list(styles.values())[:8]}) == 8, "colours first, dashes where they repeat"
    assert {dashes for _, dashes in list(styles.values())[:8]} == {"-"}
