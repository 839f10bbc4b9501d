"""What is known of one training of a search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from tuner.core.metrics import EpochMetrics, FinalScore
from tuner.core.search_spec import FIRST_REFINE, FIRST_REPEAT
from tuner.core.trial_spec import TrialSpec
from tuner.study import trial_folder

Phase: TypeAlias = Literal["timing", "pilot", "race", "refine", "confirm", "test"]
Point: TypeAlias = Literal["best", "default"]
"""What a confirmed run confirms: the settings chosen for its variant, or the variant's default point."""
POINTS: tuple[Point, ...] = ("best", "default")


@dataclass(slots=True)
class TrialRecord:
    """A timing, a training that sets targets, a trial of the race or the refinement, a confirmed run, or a reading of
    the test split."""

    name: str
    """Name: ``sgdm-03`` for a trial, ``sgdm/confirm-1`` for a confirmed run."""
    variant: str
    number: int
    """Number among its variant's trials, from 0, or among its confirmed runs, from 1."""
    spec: TrialSpec
    phase: Phase = "race"
    status: str = "pending"
    """``pending`` or ``running``; after its end ``finished``, ``stopped``, ``diverged`` or ``failed``."""
    history: list[EpochMetrics] = field(default_factory=list)
    place: Mapping[str, Any] = field(default_factory=dict)
    """What a trial is for: the user attributes of :mod:`tuner.study.optuna_study`; empty for a confirmed run."""
    test: FinalScore | None = None
    """Score of a confirmed run's final weights on the test split; None until it has been read."""
    started_at: float | None = None
    """When a worker of this process started it, in seconds since 1970; None if none did."""
    ended_at: float | None = None
    """When it ended in this process, in seconds since 1970; None if it did not."""
    num_lost_machines: int = 0
    """How often, in this process, the machine that trained it was lost or taken away."""
    busy_seconds: float = 0.0
    """Seconds that workers of this process spent inside train()."""

    @property
    def ended(self) -> bool:
        return self.status not in ("pending", "running")

    @property
    def is_trial(self) -> bool:
        """Whether it is a trial of its variant's Optuna study."""
        return self.phase in ("race", "refine")

    @property
    def repeats(self) -> int | None:
        """Number of the trial whose settings it repeats with another seed; None if it has settings of its own."""
        return self.place.get("repeats")

    @property
    def observed(self) -> bool:
        """Whether it ended by itself; a failure tells nothing about the settings."""
        return self.ended and self.status != "failed"

    @property
    def folder_name(self) -> str:
        """Name of its folder within the search's folder."""
        return trial_folder.folder_name(self.name)

    @property
    def gradient_evaluations(self) -> int:
        """Gradient evaluations that it has spent so far."""
        return self.history[-1].gradient_evaluations if self.history else 0


def phase_of(place: Mapping[str, Any]) -> Phase:
    """The phase of a trial with this place."""
    return "race" if "round" in place else "refine"


def seed_number(place: Mapping[str, Any], round_size: int) -> int:
    """The number of a trial's seed, the same for all variants; see :meth:`SearchSpec.trial_spec`."""
    if "round" in place:
        return int(place["round"] * round_size + place["slot"])
    return FIRST_REPEAT + int(place["repeat"]) if "repeats" in place else FIRST_REFINE + int(place["index"])
