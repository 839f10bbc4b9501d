"""The live display of a running search; without a terminal, one line per trial that ends and per round."""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections import Counter
from dataclasses import dataclass, field

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tuner.core.metrics import best_accuracy, target_label, time_to_target
from tuner.report.verdict import half_reached, leading_pair, missed
from tuner.study.results import Search
from tuner.study.rounds import Round
from tuner.study.scheduler import TrialScheduler
from tuner.study.trial_record import POINTS, TrialRecord

REFRESHES_PER_SECOND = 2


class Display:
    """Shows the progress of a scheduler's trials."""

    def __init__(self, console: Console, trials: TrialScheduler) -> None:
        self.console = console
        self.trials = trials
        self.started = time.monotonic()
        self._open: list[TrialRecord] = []
        self._num_seen = 0
        self._ended = {variant.name: _Standing() for variant in trials.search.variants}
        self._done_before = _done(self._standings())
        self._printed: set[str] = set()
        self._num_rounds, self._num_timed = len(trials.race.rounds), len(trials.search.seconds)
        self._live = Live(
            get_renderable=self._render,
            console=console,
            refresh_per_second=REFRESHES_PER_SECOND,
            # What Ray prints belongs in the log, not above the table.
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self._live.stop()

    def print_end(self, record: TrialRecord) -> None:
        """Prints one line for a trial that has ended, once; nothing if the output is a terminal."""
        if self.console.is_terminal or record.name in self._printed:
            return
        self._printed.add(record.name)
        standings = self._standings()
        num_ended = sum(standing.num_ended.total() for standing in standings.values())
        self.console.print(
            f"{num_ended}/{self.trials.num_planned} {record.name} {record.status}, best {self.trials.search.score} "
            f"{best_accuracy(record.history):.4f}, {_duration(self._seconds_left(_done(standings)))} left",
            highlight=False,
            soft_wrap=True,
        )
        race, seconds = self.trials.race, self.trials.search.seconds
        if len(seconds) > self._num_timed:
            self._num_timed = len(seconds)
            shown = ", ".join(f"{name} {'not known' if s is None else f'{s:.3g}'}" for name, s in seconds.items())
            self.console.print(f"Seconds per gradient evaluation: {shown}.", highlight=False, soft_wrap=True)
        for one in race.rounds[self._num_rounds :]:
            self.console.print(self._said_of(one), highlight=False, soft_wrap=True)
        self._num_rounds = len(race.rounds)

    def _said_of(self, one: Round) -> str:
        """A counted round in one line: its winner, who is out by it, and, for the newest, the evidence."""
        race, search = self.trials.race, self.trials.search
        said = f"Round {one.number + 1} of at most {race.num_rounds}: "
        if one.results:
            first = min(one.results, key=lambda name: one.results[name])
            unit = f", in {self._in_words(one.results[first])}" if race.timed else ""
            said += "no winner" if math.isinf(one.results[first]) else f"{first} first{unit}"
        else:
            said += "only one variant was in it"
        out = [name for name, number in race.out.items() if number == one.number]
        said += f"; out: {', '.join(out)}" if out else ""
        if one.number < len(race.rounds) - 1:
            return f"{said}."
        return " ".join([f"{said}; {self._evidence()}.", *missed(search)])

    def _in_words(self, time: float) -> str:
        """A time of the race with its unit."""
        in_seconds = self.trials.spec.cost == "seconds"
        return f"{time:.3g} seconds of training" if in_seconds else f"{time:.0f} gradient evaluations"

    def _evidence(self) -> str:
        """The evidence that is nearest to putting a variant out."""
        pair, race = leading_pair(self.trials.search), self.trials.race
        if len(race.left) == 1:
            return f"{race.left[0]} is left"
        if pair is None:
            return "no evidence yet"
        threshold = race.pair_threshold(*pair)
        needed = f" of {threshold:.3g}" if math.isfinite(threshold) else ""
        return f"evidence {race.evidence(*pair):.3g}{needed} that {pair[0]} beats {pair[1]}"

    def _standings(self) -> dict[str, _Standing]:
        """Variant -> its progress.  Records that have ended are added only once, as there may be thousands."""
        records, num_known, new = self.trials.records, -1, list[TrialRecord]()
        while num_known != len(records):  # the driver adds trials while the display's thread draws
            num_known = len(records)
            new = list(itertools.islice(reversed(records.values()), num_known - self._num_seen))
        looked_at, self._open, self._num_seen = [*self._open, *new], [], num_known
        for record in looked_at:
            if record.ended:
                self._ended[record.variant].add(record, self._target)
            else:
                self._open.append(record)
        standings = copy.deepcopy(self._ended)
        for record in self._open:
            standings[record.variant].add(record, self._target)
        return standings

    @property
    def _target(self) -> float | None:
        """The highest target; None until it is known."""
        targets = self.trials.spec.training.targets
        return targets[-1] if targets else None

    def _seconds_left(self, done: float) -> float | None:
        here = done - self._done_before
        if here <= 0:
            return None
        return (time.monotonic() - self.started) * max(0.0, self.trials.num_planned - done) / here

    def _render(self) -> RenderableType:
        search, spec, race = self.trials.search, self.trials.spec, self.trials.race
        standings = self._standings()
        done = _done(standings)
        lines = [f"{search.folder.name}: {spec.training.workload.data}, {spec.training.workload.model}"]
        raced = self._raced
        if search.to_be_timed:
            lines += ["Timings of each variant, one at a time"]
        elif self._target is None:
            lines += ["Trainings that set the targets"]
        elif raced:
            evidence = self._evidence()
            lines += [f"{len(race.rounds)} of at most {race.num_rounds} rounds"]
            lines += [evidence if len(race.left) == 1 else f"{evidence[0].upper()}{evidence[1:]}"]
            if race.rounds and missed(search):
                lines += [f"No training reached the target; half of them reached {half_reached(search):.1%}"]
        elapsed, left = _duration(time.monotonic() - self.started), _duration(self._seconds_left(done))
        how_long = "at most " if raced and not race.is_over else ""
        lines += [f"{elapsed} elapsed, {how_long}{left} left. Ctrl-C stops; nothing is lost."]
        # Above the table, whose end a low terminal cuts off.
        bar = ProgressBar(total=self.trials.num_planned, completed=done, width=60)
        return Group(*map(_line, lines), bar, *self._table(standings))

    @property
    def _raced(self) -> bool:
        return self.trials.race.num_rounds > 0 and len(self.trials.search.variants) > 1

    def _table(self, standings: dict[str, _Standing]) -> list[RenderableType]:
        """One row per variant, with as many columns as fit beside each other, and what they mean."""
        cells = {column: cell for column, cell in self._columns(standings).items() if cell}
        pairs = [column for column in cells if column.startswith(">")]
        most = [column for column in cells if column not in pairs and column != BEHIND]
        least = [column for column in most if column in LEAST]
        paired = [[*shown, *pairs] for shown in (most, least, least[:2]) if len(pairs) <= MOST_COLUMNS]
        choices = [*paired, [*most, BEHIND], [*least, BEHIND], least[:2]]
        unbounded = self.console.options.update(max_width=10_000)
        for chosen in choices:
            table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
            shown = {column: cells[column] for column in chosen if column in cells}
            for column in shown:
                table.add_column(column, justify="left" if column == "variant" else "right", no_wrap=True)
            for name, *row in zip(standings, *shown.values(), strict=True):
                table.add_row(*row, style="dim" if name in self.trials.race.out else "")
            if self.console.measure(table, options=unbounded).maximum <= self.console.width:
                break
        notes = [meaning for column, meaning in MEANINGS.items() if column in shown]
        return [table, *map(_line, notes)]

    def _columns(self, standings: dict[str, _Standing]) -> dict[str, list[str]]:
        """Column -> a cell per variant; no cells where the column is of no use."""
        search, race = self.trials.search, self.trials.race
        names, num_runs = list(standings), sum(map(self.trials.spec.num_seeds, POINTS))
        all_standings, target = list(standings.values()), self._target
        confirmed = set(search.refined) if race.is_over or not self._raced else set(names)
        columns = {
            "variant": [f"{number} {name}" for number, name in enumerate(names, start=1)],
            "race": [short_standing(search, name) for name in names] if self._raced else [],
            "ended": [str(standing.num_trials) for standing in all_standings],
            "runs": [str(standing.statuses["running"]) for standing in all_standings],
            "lost": [str(standing.statuses["diverged"] + standing.statuses["failed"]) for standing in all_standings],
            "confirmed": [
                f"{standings[name].num_ended['confirm']}/{num_runs if name in confirmed else 0}"
                for name in names
                if num_runs
            ],
            "best": [f"{standing.best_accuracy:.3f}" for standing in all_standings],
        }
        if target is not None:
            columns[f"to {target_label(target)}%"] = [
                "-" if standing.fastest is None else f"{standing.fastest:.0f}" for standing in all_standings
            ]
        if self._raced:
            columns |= {
                f">{number}": ["" if name == other else str(race.wins[name, other]) for name in names]
                for number, other in enumerate(names, start=1)
            }
            columns[BEHIND] = [self._behind(name, names) for name in names]
        return columns

    def _behind(self, name: str, names: list[str]) -> str:
        """The variant with the most evidence that it is faster than this one, and the rounds it won and lost."""
        race = self.trials.race
        ahead = [other for other in race.left if other != name and race.wins[other, name] > race.wins[name, other]]
        if not ahead:
            return ""
        first = max(ahead, key=lambda other: race.evidence(other, name))
        return f"{names.index(first) + 1}: {race.wins[first, name]}-{race.wins[name, first]}"


MOST_COLUMNS = 8
"""Most variants whose rounds are shown pair by pair."""
BEHIND = "behind"
LEAST = ("variant", "race", "ended", "confirmed", "best")
"""Columns that are shown in a narrow terminal, the first two in any."""
MEANINGS = {
    ">1": ">1: rounds won against variant 1",
    BEHIND: "behind: the variant that leads most against this one, and the rounds it won-lost",
}
"""Column -> what it means, where the name does not say it."""


def short_standing(search: Search, name: str) -> str:
    """A variant's place in the race, in few letters."""
    if name in search.not_timed:
        return "not timed"
    if name in search.race.out:
        return f"out {search.race.out[name] + 1}"
    return "first" if len(search.race.left) == 1 else "in"


@dataclass(slots=True)
class _Standing:
    """The progress of some trainings of a variant."""

    num_ended: Counter[str] = field(default_factory=Counter)
    """Number of trainings that have ended, by phase."""
    statuses: Counter[str] = field(default_factory=Counter)
    """Number of trainings by status."""
    done: float = 0.0
    """Number of trainings done; a running one counts as the share of its budget that it has spent."""
    best_accuracy: float = 0.0
    fastest: float | None = None
    """Fewest gradient evaluations to the highest target; None if no training reached it."""

    @property
    def num_trials(self) -> int:
        """Number of trials that have ended."""
        return self.num_ended["race"] + self.num_ended["refine"]

    def add(self, record: TrialRecord, target: float | None) -> None:
        history = list(record.history)
        self.statuses[record.status] += 1
        if record.ended:
            self.num_ended[record.phase] += 1
            self.done += 1
        elif history:
            self.done += history[-1].gradient_evaluations / history[-1].budget
        if record.phase == "timing":
            return  # it has schedules of other lengths, so its accuracies say nothing of the variant
        self.best_accuracy = max(self.best_accuracy, best_accuracy(history))
        reached = None if target is None else time_to_target(history, target)
        if reached and (self.fastest is None or reached.gradient_evaluations < self.fastest):
            self.fastest = reached.gradient_evaluations


def _line(text: str) -> Text:
    return Text(text, no_wrap=True, overflow="ellipsis")


def _done(standings: dict[str, _Standing]) -> float:
    return sum(standing.done for standing in standings.values())


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
