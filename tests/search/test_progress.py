"""The display of a search shows what its records hold, and looks at those that have ended once."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from search_spaces import Variant
from tuner.core.metrics import EpochMetrics, best_accuracy, time_to_target
from tuner.core.trial_spec import OptimizerSpec
from tuner.search.progress import Display
from tuner.study.recorder import Recorder
from tuner.study.results import TrialRecord

Open = Callable[..., Recorder]
Toy = Callable[..., Variant]
Epoch = Callable[..., EpochMetrics]
STATUSES = ("running", "finished", "stopped", "diverged", "failed")


def drawn(display: Display) -> list[list[str]]:
    """The cells of each variant's line."""
    console = Console(file=io.StringIO(), width=200)
    console.print(display._render())
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]


def expected(recorder: Recorder) -> list[list[str]]:
    """The same from all records."""
    cells = []
    for variant in recorder.search.variants:
        records = [record for record in recorder.records.values() if record.variant == variant.name]
        phases = {phase: [record for record in records if record.phase == phase] for phase in ("explore", "confirm")}
        times = [time_to_target(record.history, recorder.spec.training.targets[-1]) for record in records]
        cells.append(
            [
                variant.name,
                f"{sum(record.ended for record in phases['explore'])}/{recorder.spec.trials}",
                *(
                    str([record.status for record in records].count(status))
                    for status in STATUSES
                    if status != "finished"
                ),
                f"{sum(record.ended for record in phases['confirm'])}/3",
                f"{max((best_accuracy(record.history) for record in records), default=0.0):.4f}",
                str(min((time.gradient_evaluations for time in times if time), default="-")),
            ]
        )
    return cells


@pytest.fixture
def recorder(open_recorder: Open, toy: Toy) -> Recorder:
    return open_recorder([toy("one"), toy("two")], trials=40, confirm_seeds=2)


def add(recorder: Recorder, number: int, phase: Any) -> TrialRecord:
    variant = random.choice(["one", "two"])
    spec = recorder.spec.trial_spec(OptimizerSpec(), number)
    name = f"{variant}-{number:02d}" if phase == "explore" else f"{variant}/confirm-{number}"
    record = recorder.records[name] = TrialRecord(name, variant, number, spec, phase)
    return record


def test_it_shows_what_the_records_hold_at_any_time(recorder: Recorder, epoch: Epoch) -> None:
    random.seed(0)
    display = Display(Console(), recorder.scheduler)
    live: list[TrialRecord] = []
    for number in range(60):
        live.append(add(recorder, number, "confirm" if number % 9 == 8 else "explore"))
        for record in [record for record in live if random.random() < 0.6]:
            record.status = random.choice(STATUSES)
            record.history.append(epoch(len(record.history) + 1, random.random(), diverged=record.status == "diverged"))
        live = [record for record in live if not record.ended]
        if number % 3 == 0:
            assert drawn(display) == expected(recorder)
            done = sum(
                1.0 if record.ended else record.history[-1].gradient_evaluations / 100 if record.history else 0.0
                for record in recorder.records.values()
            )
            assert sum(standing.done for standing in display._standings().values()) == pytest.approx(done)


def test_a_line_a_trial_counts_those_that_have_ended(recorder: Recorder, epoch: Epoch) -> None:
    console = Console(file=io.StringIO(), width=200)
    display = Display(console, recorder.scheduler)
    for number in range(3):
        record = add(recorder, number, "explore")
        record.history, record.status = [epoch(1, 0.5)], "finished"
        display.print_end(record)
        display.print_end(record)
    assert isinstance(console.file, io.StringIO)
    counts = [line.split()[0] for line in console.file.getvalue().splitlines()]
    assert counts == [f"{number}/{recorder.scheduler.num_planned}" for number in (1, 2, 3)]


def test_records_that_have_ended_are_looked_at_once(recorder: Recorder, epoch: Epoch) -> None:
    class Watched(list[EpochMetrics]):
        num_read = 0

        def __iter__(self) -> Any:
            Watched.num_read += 1
            return super().__iter__()

    for number in range(30):
        record = add(recorder, number, "explore")
        record.history, record.status = Watched([epoch(1, 0.5)]), "finished"
    display = Display(Console(), recorder.scheduler)
    assert Watched.num_read == 30
    drawn(display)
    assert Watched.num_read == 30
