"""Shared fixtures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tuner.spec import EpochMetrics


@pytest.fixture
def epoch() -> Callable[..., EpochMetrics]:
    """Makes the metrics of an epoch of ten gradient evaluations, in a budget of a hundred."""

    def make(number: int, accuracy: float, **changes: Any) -> EpochMetrics:
        values: dict[str, Any] = {
            "epoch": number,
            "gradient_evaluations": 10 * number,
            "budget": 100,
            "train_loss": 1.0,
            "train_accuracy": accuracy,
            "validation_loss": 1.0,
            "validation_accuracy": accuracy,
            "lr": 0.1,
            "momentum": 0.9,
            "p": 2.0,
            "seconds": 0.5 * number,
            "evaluation_seconds": 0.1 * number,
            "compile_seconds": 0.0,
            "loading_seconds": 0.0,
            "images_per_second": 1000.0,
            "diverged": False,
            "finished_at": 1.7e9 + number,
        }
        return EpochMetrics(**{**values, **changes})

    return make
