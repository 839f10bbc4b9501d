"""The report's theory: what it covers, what it counts, and that it stays silent where it has nothing to say."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from search_spaces import SPACES
from tuner.core.metrics import EpochMetrics
from tuner.core.search_spec import SearchSpec
from tuner.core.serialization import with_settings
from tuner.core.trial_spec import OptimizerSpec
from tuner.core.variants import resolve_variants
from tuner.report.document import Section
from tuner.report.outline import report_of
from tuner.report.theory_check import foretell, theory
from tuner.study.results import Search
from tuner.study.trial_record import TrialRecord
from tuner.theory.coverage import limit_of
from tuner.theory.prediction import solve_limit
from tuner.theory.problem import standard_problem
from tuner.workloads.population import DIMENSION, NUM_TRAIN, make_population

Epoch = Callable[..., EpochMetrics]
EPOCHS, STEPS, TARGET = 4, NUM_TRAIN // 64, 0.8
SQUARE = make_population().label_square


@pytest.fixture
def searched(epoch: Epoch) -> Callable[..., Search]:
    """A search of variants, with a training for each (variant, lr.peak, factor, changes).

    Its risks are the limit's of a constant ``lr.peak`` without momentum, times the factor, after the first ``epochs``
    evaluations; ``diverged`` ends it in inf.
    """

    def make(trainings: Sequence[tuple[Any, ...]], **changes: Any) -> Search:
        variants = tuple(dict.fromkeys(training[0] for training in trainings)) or ("sgd",)
        values = {"name": "x", "variants": variants, "workload": "diagonal", "epochs": EPOCHS, "targets": (0.5, TARGET)}
        spec = SearchSpec.from_flags(**{**values, **changes})
        search = Search(spec, "id", resolve_variants(spec.variants, ()), Path("x"), {})
        for number, (variant, lr, factor, *rest) in enumerate(trainings):
            options: dict[str, Any] = rest[0] if rest else {}
            plain = {"lr.peak": lr, "lr.schedule": "constant"} | (
                {"lr.warmup": 0.0, "decay.weight": 1e-5} if variant == "sgd" else {}
            )
            optimizer = with_settings(OptimizerSpec(), {**SPACES[variant].default_settings(), **plain})
            status = options.get("status", "diverged" if options.get("diverged") else "finished")
            record = TrialRecord(
                f"{variant}-{number:02d}", variant, number, spec.trial_spec(optimizer, number), status=status,
                phase=options.get("phase", "explore"),
            )  # fmt: skip
            steps = STEPS * np.arange(1, options.get("epochs", EPOCHS) + 1)
            for n, risk in zip(steps.tolist(), factor * predicted_risks(lr, steps), strict=True):
                record.history.append(
                    epoch(
                        n // STEPS,
                        max(1 - 2 * risk / SQUARE, 0.0),
                        steps=n,
                        gradient_evaluations=n,
                        budget=STEPS * EPOCHS,
                        validation_loss=risk,
                    )
                )
            if options.get("diverged"):
                last = record.history[-1]
                record.history[-1] = dataclasses.replace(
                    last, diverged=True, validation_loss=math.inf, validation_accuracy=0.0
                )
            search.records[record.name] = record
        return search

    return make


def predicted_risks(lr: float, steps: np.ndarray) -> np.ndarray:
    """What the limit says of plain SGD after so many steps."""
    settings: dict[str, Any] = {
        "rule": "sgd",
        "lr.peak": lr,
        "lr.schedule": "constant",
        "momentum.value": 0.0,
        "decay.weight": 1e-5,
    }
    optimizer = with_settings(OptimizerSpec(), settings)
    limit = limit_of(optimizer, dimension=DIMENSION, batch=64, num_steps=EPOCHS * STEPS, steps_per_epoch=STEPS)
    return solve_limit(standard_problem(), limit, np.array([0, *steps]) / DIMENSION).risk[0, 1:]


def row(section: Section, variant: str) -> dict[str, str]:
    (table,) = section.tables
    (found,) = (cells for cells in table.rows if cells[0] == variant)
    return dict(zip(table.columns, found, strict=True))


def text(section: Section) -> str:
    cells = [cell for table in section.tables for cells in table.rows for cell in cells]
    return " ".join([*section.sentences, *cells])


def test_what_the_limit_said_came_true(searched: Callable[..., Search]) -> None:
    """Of risks that are the limit's own the gap is 0 and the times agree, whatever their learning rates."""
    section = theory(searched([("sgd", lr, 1.0) for lr in (3.0, 4.0, 5.0, 7.0)]))
    found = row(section, "sgd")
    assert found["covered"] == found["reached"] == "4" and float(found["gap"]) < 1e-6
    assert found["measured over predicted"] == "1 [1, 1]" and found["only one reached"] == "0"
    assert (
        "covers 4 trainings that ended. Of these, 4 reached 80% both in theory and in measurement"
        in section.sentences[0]
    )
    assert "is 1.000 (4 trainings)" in section.sentences[1]
    assert [picture.name for picture in section.pictures] == ["theory_times", "theory_curves"]


def test_what_took_longer_is_so_much_longer(searched: Callable[..., Search]) -> None:
    """Risks that are a tenth larger: a gap of .1 at all evaluations, of which the start is one, and a later time."""
    found = row(theory(searched([("sgd", 5.0, 1.1)])), "sgd")
    assert float(found["gap"]) == pytest.approx(0.1 * EPOCHS / (EPOCHS + 1), rel=0.05)
    assert float(found["measured over predicted"].split()[0]) > 1.01


def test_who_reached_the_target_alone_is_counted(searched: Callable[..., Search]) -> None:
    section = theory(searched([("sgd", 5.0, 1.0), ("sgd", 5.0, 500.0), ("sgd", 0.2, 1.0)]))
    found = row(section, "sgd")
    assert (found["covered"], found["reached"], found["only one reached"]) == ("3", "1", "1")
    assert "covers 3 trainings that ended. Of these, 1 reached 80% both in theory and in measurement" in text(section)


def test_none_that_reached_the_target(searched: Callable[..., Search]) -> None:
    section = theory(searched([("sgd", 0.2, 1.0), ("sgd", 0.25, 1.0)]))
    found = row(section, "sgd")
    assert (found["reached"], found["measured over predicted"], found["only one reached"]) == ("0", "-", "0")
    assert len(section.sentences) == 1 and [picture.name for picture in section.pictures] == ["theory_curves"]


def test_what_is_not_covered_has_its_reason_and_count(searched: Callable[..., Search]) -> None:
    section = theory(searched([("sgd", 5.0, 1.0), ("adamw", 5.0, 1.0), ("adamw", 6.0, 1.0)]))
    found = row(section, "adamw")
    assert found["covered"] == "0" and found["gap"] == "-"
    assert found["not covered"] == "the direction of adamw is not the gradient's (2)"
    assert row(section, "sgd")["not covered"] == "-"
    alone = theory(searched([("adamw", 5.0, 1.0)]))
    assert alone.sentences == ("The theory's limit covers none of the trainings that ended.",) and alone.pictures == ()


def test_what_cannot_be_solved_is_no_advice(searched: Callable[..., Search], monkeypatch: pytest.MonkeyPatch) -> None:
    search = searched([("sgd", 90.0, 1.0), ("sgd", 5.0, 1.0)])
    monkeypatch.setattr("tuner.theory.pde.MOST_STEPS", 5)
    found = row(theory(search), "sgd")
    assert found["covered"] == "1" and found["not covered"] == "its equation could not be solved (1)"


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_diverged_training_is_one_up_to_there(searched: Callable[..., Search], epochs: int) -> None:
    """Where its first evaluation diverged nothing but the start is left."""
    section = theory(searched([("sgd", 5.0, 1.0, {"diverged": True, "epochs": epochs})]))
    found = row(section, "sgd")
    assert found["covered"] == "1" and float(found["gap"]) < 1e-6
    words = text(section).lower()
    assert "nan" not in words and "inf" not in words.replace("infinite", "")


def test_stopped_trials_count_with_the_history_they_have(searched: Callable[..., Search]) -> None:
    section = theory(searched([("sgd", 0.2, 1.0, {"status": "stopped", "epochs": 1}), ("sgd", 5.0, 1.0)]))
    found = row(section, "sgd")
    assert (found["covered"], found["reached"]) == ("2", "1")


def test_what_has_not_ended_or_failed_takes_no_part(searched: Callable[..., Search]) -> None:
    states = [{"status": status} for status in ("failed", "running", "pending")]
    found, reasons = foretell(searched([("sgd", 5.0, 1.0), *(("sgd", 5.0, 1.0, state) for state in states)]))
    assert [one.record.name for one in found] == ["sgd-00"] and not reasons["sgd"]


def test_confirmed_runs_are_first_and_alone_in_the_picture(
    searched: Callable[..., Search], monkeypatch: pytest.MonkeyPatch
) -> None:
    search = searched([("sgd", 5.0, 1.0), ("sgd", 5.0, 1.02, {"phase": "confirm"}), ("sgd", 4.0, 1.0)])
    assert [one.record.phase for one in foretell(search)[0]] == ["confirm", "explore", "explore"]
    curves = next(picture for picture in theory(search).pictures if picture.name == "theory_curves")
    assert "confirmed runs" in curves.title and len(curves.figure.axes[0].lines) == 2
    monkeypatch.setattr("tuner.report.theory_check.MOST", 1)
    assert [one.record.phase for one in foretell(search)[0]] == ["confirm"]


def test_squares_are_covered_as_squares(searched: Callable[..., Search]) -> None:
    """beta = u^2 - v^2 moves as the product at twice the rate, but for a decay of 1e-5, a few percent in the end."""
    product, squares = searched([("sgd", 6.0, 1.0)]), searched([("sgd", 3.0, 1.0)], model="diagonal-squares")
    first, second = (foretell(search)[0][0].predicted.risk for search in (product, squares))
    np.testing.assert_allclose(second, first, rtol=0.12)
    assert (
        foretell(searched([("sgd", 6.0, 1.0)], model="diagonal-squares"))[0][0].predicted.risk[0, 1] < 0.7 * first[0, 1]
    )


def test_the_section_is_of_this_workload_alone(searched: Callable[..., Search]) -> None:
    trained = [("sgd", 5.0, 1.0)]
    assert theory(searched(trained, workload="digits")) == Section("Theory")
    assert "Theory" not in [section.title for section in report_of(searched(trained, workload="digits")).sections]
    assert "Theory" in [section.title for section in report_of(searched(trained)).sections]
    assert theory(searched([])).pictures == ()
