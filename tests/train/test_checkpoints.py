"""The newest checkpoint that is whole counts; a kill while one is written leaves the one before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tuner.core.errors import InvalidInput
from tuner.core.store import Store
from tuner.train import checkpoints as module
from tuner.train.checkpoints import LARGEST_SHARE, Checkpoints


def kept(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_newer_one_takes_the_place_of_the_older(tmp_path: Path) -> None:
    checkpoints = Checkpoints(Store(tmp_path), spec_digest="d")
    assert checkpoints.newest() is None
    for epoch in (1, 2, 10):
        checkpoints.save(epoch, {"epoch": torch.tensor(epoch)})
    assert kept(tmp_path) == ["checkpoint-000010.pt"]
    content = Checkpoints(Store(tmp_path), spec_digest="d").newest()
    assert content is not None and content["epoch"] == 10


def test_one_cut_short_at_any_byte_leaves_the_one_before(tmp_path: Path) -> None:
    """What a kill during a write leaves: the older is deleted only when the newer is whole."""
    Checkpoints(Store(tmp_path), spec_digest="d").save(1, {"epoch": 1})
    whole = (tmp_path / "checkpoint-000001.pt").read_bytes()
    for length in [*range(0, len(whole), 97), len(whole) - 1]:
        (tmp_path / "checkpoint-000002.pt").write_bytes(whole[:length])
        checkpoints = Checkpoints(Store(tmp_path), spec_digest="d")
        content = checkpoints.newest()
        assert content is not None and content["epoch"] == 1
    checkpoints.save(2, {"epoch": 2})
    assert kept(tmp_path) == ["checkpoint-000002.pt"]
    content = checkpoints.newest()
    assert content is not None and content["epoch"] == 2


def test_a_failed_write_keeps_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(Store(tmp_path), spec_digest="d")
    checkpoints.save(1, {"epoch": 1})
    monkeypatch.setattr(module, "retry", lambda _, attempt: attempt())

    def full(self: Store, name: str, content: bytes) -> None:
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", full)
        with pytest.raises(OSError, match="No space"):
            checkpoints.save(2, {"epoch": 2})
    content = Checkpoints(Store(tmp_path), spec_digest="d").newest()
    assert content is not None and content["epoch"] == 1


def test_a_worker_cut_off_for_a_while_harms_no_newer_one(tmp_path: Path) -> None:
    stale = Checkpoints(Store(tmp_path), spec_digest="d")
    stale.save(1, {"epoch": 1})
    taken_up = Checkpoints(Store(tmp_path), spec_digest="d")
    taken_up.newest()
    for epoch in (2, 3):
        taken_up.save(epoch, {"epoch": epoch})
    stale.save(2, {"epoch": 2})
    content = Checkpoints(Store(tmp_path), spec_digest="d").newest()
    assert content is not None and content["epoch"] == 3


def test_that_of_another_training_is_refused(tmp_path: Path) -> None:
    Checkpoints(Store(tmp_path), spec_digest="d").save(1, {})
    with pytest.raises(InvalidInput, match="is the checkpoint of another training"):
        Checkpoints(Store(tmp_path), spec_digest="e").newest()


def test_nothing_but_tensors_and_plain_data_is_ever_unpickled(tmp_path: Path) -> None:
    torch.save({"format": module.FORMAT, "spec": "d", "evil": Path("/")}, tmp_path / "checkpoint-000001.pt")
    assert Checkpoints(Store(tmp_path), spec_digest="d").newest() is None


def test_they_are_as_far_apart_as_asked_or_as_their_cost_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("tuner.train.checkpoints.time.monotonic", lambda: now)
    costly = Store.write

    def slow(self: Store, name: str, content: bytes) -> None:
        nonlocal now
        now += 2.0
        costly(self, name, content)

    monkeypatch.setattr(Store, "write", slow)
    for interval, due_after in [(None, 2.0 / LARGEST_SHARE - 2.0), (0.0, 0.0), (7.0, 7.0)]:
        checkpoints = Checkpoints(Store(tmp_path), spec_digest="d", interval=interval)
        assert checkpoints.is_due(), "the first"
        checkpoints.save(1, {})
        saved = now
        for wait, due in [(due_after - 0.01, False), (due_after + 0.01, True)]:
            now = saved + wait
            assert checkpoints.is_due() == due or due_after == 0
