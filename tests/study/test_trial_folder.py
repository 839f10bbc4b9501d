"""A trial's log: read as written, cut short anywhere, and begun anew."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from tuner.core.metrics import EpochMetrics
from tuner.study.trial_folder import LOG, append_epoch, read_epochs, repair_log

Epoch = Callable[..., EpochMetrics]


def test_no_folder_and_no_log_have_no_epochs(tmp_path: Path) -> None:
    assert read_epochs(tmp_path / "absent") == read_epochs(tmp_path) == []


def test_epochs_come_back_bit_for_bit(tmp_path: Path, epoch: Epoch) -> None:
    history = [epoch(1, 0.1 + 0.2), epoch(2, 1 / 3, train_loss=math.inf, p=math.inf, diverged=True)]
    for metrics in history:
        append_epoch(tmp_path, metrics)
    assert read_epochs(tmp_path) == history


def test_a_loss_that_is_no_number_comes_back(tmp_path: Path, epoch: Epoch) -> None:
    append_epoch(tmp_path, epoch(1, 0.5, validation_loss=math.nan))
    assert math.isnan(read_epochs(tmp_path)[0].validation_loss)


def test_a_log_cut_at_any_byte_keeps_the_epochs_before(tmp_path: Path, epoch: Epoch) -> None:
    history = [epoch(number, number / 10) for number in (1, 2, 3)]
    ends = []
    for metrics in history:
        append_epoch(tmp_path, metrics)
        ends.append((tmp_path / LOG).stat().st_size)
    content = (tmp_path / LOG).read_bytes()
    for length in [*range(0, len(content), 9), *ends, *(end - 1 for end in ends), *(end - 2 for end in ends)]:
        (tmp_path / LOG).write_bytes(content[:length])
        # Whole without its newline, a line is as good as with it.
        assert read_epochs(tmp_path) == history[: sum(end - 1 <= length for end in ends)]


def test_what_follows_a_line_that_is_no_epoch_is_left_out(tmp_path: Path, epoch: Epoch) -> None:
    append_epoch(tmp_path, epoch(1, 0.1))
    for garbage in ("\0" * 40, '{"training_iteration": 2', "{}", ""):
        with (tmp_path / LOG).open("a") as log:
            log.write(garbage + "\n")
        append_epoch(tmp_path, epoch(2, 0.2))
        assert read_epochs(tmp_path) == [epoch(1, 0.1)]


def test_a_log_is_mended_of_what_was_cut_short_or_written_twice(tmp_path: Path, epoch: Epoch) -> None:
    assert repair_log(tmp_path) == set()
    for number in (1, 2, 3):
        append_epoch(tmp_path, epoch(number, number / 10))
    whole = (tmp_path / "result.json").read_text()
    for damaged in (whole + whole.splitlines()[2] + "\n", whole + whole[:100], whole):
        (tmp_path / "result.json").write_text(damaged)
        assert repair_log(tmp_path) == {1, 2, 3}
        assert (tmp_path / "result.json").read_text() == whole


def test_epochs_need_not_be_one_apart(tmp_path: Path, epoch: Epoch) -> None:
    """A backward phase may be evaluated every few epochs."""
    for number in (1, 2, 5, 9):
        append_epoch(tmp_path, epoch(number, 0.5))
    assert repair_log(tmp_path) == {1, 2, 5, 9}
    assert [metrics.epoch for metrics in read_epochs(tmp_path)] == [1, 2, 5, 9]


def test_two_writers_lose_no_epoch(tmp_path: Path, epoch: Epoch) -> None:
    for number in (1, 5, 2, 3, 4, 5):
        append_epoch(tmp_path, epoch(number, 0.5))
    assert [metrics.epoch for metrics in read_epochs(tmp_path)] == [1, 2, 3, 4, 5]


def test_an_epoch_told_twice_counts_once(tmp_path: Path, epoch: Epoch) -> None:
    for number, accuracy in [(1, 0.1), (2, 0.2), (2, 0.9), (3, 0.3)]:
        append_epoch(tmp_path, epoch(number, accuracy))
    assert read_epochs(tmp_path) == [epoch(1, 0.1), epoch(2, 0.2), epoch(3, 0.3)]


def test_lines_have_the_form_of_tunes_own(tmp_path: Path, epoch: Epoch) -> None:
    append_epoch(tmp_path, epoch(1, 0.5))
    append_epoch(tmp_path, epoch(2, 0.6))
    lines = [json.loads(line) for line in (tmp_path / "result.json").read_text().splitlines()]
    assert [line["training_iteration"] for line in lines] == [1, 2]
    assert lines[1]["validation/accuracy"] == 0.6


@pytest.mark.parametrize("last", [None, 0.5])
def test_logs_are_read_while_they_grow(tmp_path: Path, epoch: Epoch, last: float | None) -> None:
    for number in range(1, 51):
        append_epoch(tmp_path, epoch(number, last or number / 100))
        assert len(read_epochs(tmp_path)) == number


def test_a_log_cut_in_its_first_line_is_begun_anew(tmp_path: Path, epoch: Callable[..., EpochMetrics]) -> None:
    (tmp_path / LOG).write_text('{"training_iter')
    assert repair_log(tmp_path) == set()
    append_epoch(tmp_path, epoch(1, 0.5))
    assert read_epochs(tmp_path) == [epoch(1, 0.5)]
    assert [json.loads(line)["training_iteration"] for line in (tmp_path / LOG).read_text().splitlines()] == [1]
