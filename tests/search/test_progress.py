"""The display of a search shows what its records hold, looks at those that have ended once, and wraps no line."""

from __future__ import annotations

import io
import itertools
import random
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from optuna.storages import InMemoryStorage
from rich.console import Console

from benchmarks.simulated_search import Truth, curve
from search_spaces import SPACES, Variant
from tuner import race
from tuner.core.metrics import EpochMetrics, best_accuracy, is_finished, time_to_target
from tuner.core.search_spec import SearchSpec
from tuner.core.trial_spec import OptimizerSpec
from tuner.search.progress import Display
from tuner.study.optuna_study import open_studies
from tuner.study.recorder import Recorder
from tuner.study.results import Search
from tuner.study.scheduler import TrialScheduler
from tuner.study.trial_record import TrialRecord

Open = Callable[..., Recorder]
Toy = Callable[..., Variant]
Epoch = Callable[..., EpochMetrics]
STATUSES = ("running", "finished", "stopped", "diverged", "failed")
NUM_FRESH = 3
"""Confirmed runs of each variant with two seeds: two of its best settings, one of its default point."""


def shown(display: Display) -> list[str]:
    """The lines of the display, in a console like its own."""
    console = Console(file=io.StringIO(), width=display.console.width)
    console.print(display._render())
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def rows(display: Display) -> dict[str, dict[str, str]]:
    """Variant -> the cells of its line by column."""
    lines = shown(display)
    (head,) = [number for number, line in enumerate(lines) if line.split()[:1] == ["variant"]]
    columns = re.split(r" {2,}", lines[head].strip())
    # Numbers are aligned to the right, so a cell ends where its column's name ends.
    ends = [lines[head].index(column) + len(column) for column in columns]
    found = {}
    for line in lines[head + 2 :]:
        if not (named := re.match(r" (\d+) ([\w-]+)", line)):
            break
        starts = [named.end(), *ends[1:-1]]
        cells = [line[start:end].strip() for start, end in zip(starts, ends[1:], strict=True)]
        found[named[2]] = dict(zip(columns[1:], cells, strict=True))
    return found


def expected(recorder: Recorder) -> dict[str, dict[str, str]]:
    """The same from all records."""
    found = {}
    for variant in recorder.search.variants:
        records = [record for record in recorder.records.values() if record.variant == variant.name]
        confirmed = [record for record in records if record.phase == "confirm"]
        statuses = [record.status for record in records]
        times = [time_to_target(record.history, recorder.spec.training.targets[-1]) for record in records]
        found[variant.name] = {
            "ended": str(sum(record.ended for record in records if record.is_trial)),
            "runs": str(statuses.count("running")),
            "lost": str(statuses.count("diverged") + statuses.count("failed")),
            "confirmed": f"{sum(record.ended for record in confirmed)}/{NUM_FRESH}",
            "best": f"{max((best_accuracy(record.history) for record in records), default=0.0):.3f}",
            "to 95%": min((f"{time.gradient_evaluations:.0f}" for time in times if time), key=float, default="-"),
        }
    return found


@pytest.fixture
def recorder(open_recorder: Open, toy: Toy) -> Recorder:
    return open_recorder([toy("one"), toy("two")], trials=40, confirm_seeds=2)


def add(recorder: Recorder, number: int, phase: Any) -> TrialRecord:
    variant = random.choice(["one", "two"])
    spec = recorder.spec.trial_spec(OptimizerSpec(), number)
    name = f"{variant}/confirm-{number}" if phase == "confirm" else f"{variant}-{number:02d}"
    record = recorder.records[name] = TrialRecord(name, variant, number, spec, phase)
    return record


def test_it_shows_what_the_records_hold_at_any_time(recorder: Recorder, epoch: Epoch) -> None:
    random.seed(0)
    display = Display(Console(width=120), recorder.scheduler)
    live: list[TrialRecord] = []
    for number in range(60):
        live.append(add(recorder, number, "confirm" if number % 9 == 8 else random.choice(["race", "refine"])))
        for record in [record for record in live if random.random() < 0.6]:
            record.status = random.choice(STATUSES)
            record.history.append(epoch(len(record.history) + 1, random.random(), diverged=record.status == "diverged"))
        live = [record for record in live if not record.ended]
        if number % 3 == 0:
            for variant, cells in expected(recorder).items():
                assert cells.items() <= rows(display)[variant].items()
            done = sum(
                1.0 if record.ended else record.history[-1].gradient_evaluations / 100 if record.history else 0.0
                for record in recorder.records.values()
            )
            assert sum(standing.done for standing in display._standings().values()) == pytest.approx(done)


def test_a_line_a_trial_counts_those_that_have_ended(recorder: Recorder, epoch: Epoch) -> None:
    console = Console(file=io.StringIO(), width=200)
    display = Display(console, recorder.scheduler)
    for number in range(3):
        record = add(recorder, number, "race")
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
        record = add(recorder, number, "refine")
        record.history, record.status = Watched([epoch(1, 0.5)]), "finished"
    display = Display(Console(width=120), recorder.scheduler)
    assert Watched.num_read == 30
    shown(display)
    assert Watched.num_read == 30


class Simulated:
    """A search of the real scheduler whose trainings are formulas, as far as a test takes it."""

    def __init__(self, folder: Path, truths: Mapping[str, Truth], **flags: Any) -> None:
        values = {"name": "s", "variants": tuple(truths), "output": str(folder), "confirm_seeds": 2, **flags}
        spec = SearchSpec.from_flags(**values)
        chosen = tuple(SPACES[name] for name in truths)
        studies = open_studies(spec, chosen, InMemoryStorage(), search="s")
        made = {name: study.study for name, study in studies.items()}
        self.search = Search(spec, "id", chosen, folder / "s", made)
        self.scheduler = TrialScheduler(self.search, studies)
        self.truths = truths
        self._begun: TrialRecord | None = None

    def train(self) -> TrialRecord:
        """Trains the next trial to its end."""
        record, self._begun = self._begun or self.scheduler.next_trial(), None
        assert record is not None
        record.status = "running"
        for metrics in curve(record.spec, self.truths[record.variant]):
            record.history.append(metrics)
            if is_finished(record.spec, record.history):
                break
        record.status = "diverged" if record.history[-1].diverged else "finished"
        self.scheduler.studies[record.variant].tell(record.number, record.status, record.history)
        self.scheduler.end(record)
        return record

    def train_rounds(self, number: int) -> None:
        """Trains until so many rounds are counted or the race is over, and begins one training more."""
        while len(self.scheduler.race.rounds) < number and not self.scheduler.race.is_over:
            self.train()
        self._begun = self._begun or self.scheduler.next_trial()
        if self._begun:
            self._begun.status = "running"


def truths_of(number: int) -> dict[str, Truth]:
    """The first is fastest, the last one learns nothing."""
    names = ["sgdm", "critical-matched", *(name for name in SPACES if name not in ("sgdm", "critical-matched"))]
    return {name: Truth(speed=0.6 - 0.025 * place) for place, name in enumerate(names[: number - 1])} | {
        names[number - 1]: Truth(speed=0.01)
    }


@pytest.mark.parametrize("width", [80, 140])
@pytest.mark.parametrize("number", [2, 4, 8, 21])
def test_no_line_of_a_running_race_wraps_and_each_says_where_it_stands(number: int, width: int, tmp_path: Path) -> None:
    # Seven wins decide between 21 variants only with a large error rate.
    running = Simulated(tmp_path, truths_of(number), alpha=0.9 if number > 8 else 0.3, round_size=2)
    state, names = running.scheduler.race, list(running.truths)
    display = Display(Console(width=width), running.scheduler)
    for rounds in (1, 7):
        running.train_rounds(rounds)
        lines = shown(display)
        assert max(map(len, lines)) <= width and not [line for line in lines if "…" in line]
        assert f"{len(state.rounds)} of at most 32 rounds" in lines
        cells = rows(display)
        assert list(cells) == names, "a line that wraps is no row"
        for place, name in enumerate(names, start=1):
            out = f"out {state.out.get(name, 0) + 1}" if name in state.out else "in" if len(state.left) > 1 else "first"
            assert cells[name]["race"] == out
            for other in names if number <= 8 else ():
                assert cells[other][f">{place}"] == ("" if name == other else str(state.wins[other, name]))
        assert any(
            re.fullmatch(r"\d+:\d\d elapsed, (at most )?\S+ left\. Ctrl-C stops; nothing is lost\.", line)
            for line in lines
        )
    assert names[-1] in state.out, "the race put nobody out"


def test_the_evidence_is_shown_on_its_way_to_its_threshold(tmp_path: Path) -> None:
    running = Simulated(tmp_path, truths_of(2), round_size=1)
    display = Display(Console(width=80), running.scheduler)
    assert "No evidence yet" in shown(display)
    threshold = running.scheduler.race.pair_threshold("sgdm", "critical-matched")
    needed = next(won for won in itertools.count() if race.evidence(won, 0) >= threshold)
    for won in range(1, needed):
        running.train_rounds(won)
        expected = f"Evidence {race.evidence(won, 0):.3g} of {threshold:.3g} that sgdm beats critical-matched"
        assert expected in shown(display)
        assert rows(display)["sgdm"] | {"race": "in", ">2": str(won)} == rows(display)["sgdm"]
    running.train_rounds(needed)
    assert "sgdm is left" in shown(display)
    assert rows(display)["sgdm"]["race"] == "first" and rows(display)["critical-matched"]["race"] == f"out {needed}"
    assert rows(display)["critical-matched"]["confirmed"] == "0/0", "nothing of it is confirmed"


def test_of_many_variants_each_has_the_one_that_leads_most_against_it(tmp_path: Path) -> None:
    running = Simulated(tmp_path, truths_of(21), round_size=1)
    display = Display(Console(width=140), running.scheduler)
    running.train_rounds(4)
    state, names = running.scheduler.race, list(running.truths)
    cells = rows(display)
    assert not [column for column in cells["sgdm"] if column.startswith(">")]
    for name in names:
        ahead = [other for other in names if other != name and state.wins[other, name] > state.wins[name, other]]
        if not ahead:
            assert cells[name]["behind"] == ""
            continue
        place, counts = cells[name]["behind"].split(": ")
        other = names[int(place) - 1]
        assert counts == f"{state.wins[other, name]}-{state.wins[name, other]}"
        assert state.evidence(other, name) == max(state.evidence(one, name) for one in ahead)


def test_a_race_that_none_reaches_says_how_far_they_come(tmp_path: Path) -> None:
    running = Simulated(tmp_path, {name: Truth(speed=0.05) for name in ("sgdm", "adamw")}, round_size=1)
    display = Display(Console(width=80), running.scheduler)
    running.train_rounds(2)
    (line,) = [line for line in shown(display) if line.startswith("No training reached the target; half of them")]
    assert 0.1 < float(line.split()[-1].rstrip("%")) / 100 < 0.95
    assert "No evidence yet" in shown(display)


def test_a_search_without_a_race_shows_none(tmp_path: Path) -> None:
    running = Simulated(tmp_path, {"sgdm": Truth()}, trials=4)
    display = Display(Console(width=80), running.scheduler)
    running.train()
    lines = shown(display)
    assert not [line for line in lines if "round" in line or "vidence" in line]
    assert "race" not in rows(display)["sgdm"] and rows(display)["sgdm"]["ended"] == "1"


@pytest.mark.parametrize("number", [1, 2])
def test_before_the_targets_are_known_it_says_that_they_are_measured(number: int, tmp_path: Path) -> None:
    running = Simulated(tmp_path, dict(list(truths_of(2).items())[:number]), targets="auto")
    display = Display(Console(width=80), running.scheduler)
    running.train_rounds(0)
    assert "Trainings that set the targets" in shown(display)
    assert rows(display)["sgdm"] | {"ended": "0", "runs": "1"} == rows(display)["sgdm"]
    assert not [column for column in rows(display)["sgdm"] if column.startswith("to ")]


def test_the_time_left_is_that_of_the_trainings_that_are_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("tuner.search.progress.time.monotonic", lambda: now)
    running = Simulated(tmp_path, truths_of(2), trials=8, round_size=1, refine_trials=0)
    display = Display(Console(width=80), running.scheduler)
    assert "0:00 elapsed, at most ? left. Ctrl-C stops; nothing is lost." in shown(display)
    for _ in range(4):
        running.train()
    now += 40.0
    # Four of 16 trainings of the race and of 6 confirmed runs: ten seconds each.
    assert "0:40 elapsed, at most 3:00 left. Ctrl-C stops; nothing is lost." in shown(display)


def test_a_piped_search_by_seconds_says_what_it_measured_once_and_rounds_in_seconds(tmp_path: Path) -> None:
    running = Simulated(tmp_path, truths_of(2), round_size=1, refine_trials=0, cost="seconds")
    console = Console(file=io.StringIO(), width=60)
    display = Display(console, running.scheduler)
    assert "Timings of each variant, one at a time" in shown(display)
    running.search.set_seconds({"sgdm": 0.02, "critical-matched": 0.04})
    for _ in range(4):
        display.print_end(running.train())
    assert isinstance(console.file, io.StringIO)
    _, seconds, *lines = console.file.getvalue().splitlines()
    assert seconds == "Seconds per gradient evaluation: sgdm 0.02, critical-matched 0.04."
    said = [line for line in lines if not re.match(r"\d", line)]
    time = running.search.race.rounds[0].results["sgdm"]
    assert said[0].startswith(f"Round 1 of at most 64: sgdm first, in {time:.3g} seconds of training; evidence")
    assert not any("Timings" in line for line in shown(display))
    assert not any("Seconds per" in line for line in lines)


def test_a_piped_search_says_who_won_each_round_and_who_is_out(tmp_path: Path) -> None:
    running = Simulated(tmp_path, truths_of(2), round_size=1, refine_trials=0)
    running.train_rounds(1)
    console = Console(file=io.StringIO(), width=60)  # whose lines are longer, and are not wrapped all the same
    display = Display(console, running.scheduler)
    while not running.scheduler.race.is_over:
        display.print_end(running.train())
    assert isinstance(console.file, io.StringIO)
    said = [line for line in console.file.getvalue().splitlines() if line.startswith("Round")]
    state = running.scheduler.race
    threshold = state.pair_threshold("sgdm", "critical-matched")
    assert len(said) == len(state.rounds) - 1 > 3, "one that was counted before is not told again"
    for number, line in enumerate(said[:-1], start=2):
        time = state.rounds[number - 1].results["sgdm"]
        evidence = f"evidence {race.evidence(number, 0):.3g} of {threshold:.3g} that sgdm beats critical-matched"
        assert line == f"Round {number} of at most 64: sgdm first, in {time:.0f} gradient evaluations; {evidence}."
    assert said[-1].endswith("gradient evaluations; out: critical-matched; sgdm is left.")
