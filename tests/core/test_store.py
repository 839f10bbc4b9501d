"""One place for checkpoints and weights: a folder, object storage, or whatever fsspec knows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command import Running, check_whole, search
from tests.object_storage import BUCKET, serving
from tuner.core.errors import InvalidInput
from tuner.core.store import Store, check_place
from tuner.study.results import load_search


@pytest.fixture(params=["folder", "folder with spaces", "file", "s3", "fsspec"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A place that has been made."""
    places: dict[str, str | Path] = {
        "folder": tmp_path / "x",
        "folder with spaces": tmp_path / "x y#z",
        "file": f"file://{tmp_path}/x",
    }
    if request.param in places:
        made = Store(places[request.param])
        made.make()
        yield made
    elif request.param == "fsspec":
        yield Store(f"memory://{tmp_path}")
    else:
        with serving(monkeypatch):
            yield Store(f"{BUCKET}/x")


def test_files_are_written_read_listed_and_deleted(store: Store) -> None:
    assert store.names() == [] == store.names("a", "b")
    store.write("one", b"1")
    (store / "a").write("two", b"22")
    (store / "b").write("three", b"")
    (store / "a").write("two", b"2" * 10**6)
    assert store.names() == ["one"]
    assert store.names("a", "b", "none") == ["a/two", "b/three"]
    assert (store / "a").names() == ["two"]
    assert store.read("one") == b"1" and (store / "a").read("two") == b"2" * 10**6
    assert (store / "b").read("three") == b""
    store.delete("one")
    store.delete("one")
    assert store.names() == [] and store.names("a") == ["a/two"]
    with pytest.raises(FileNotFoundError):
        store.read("one")


def test_a_folder_that_this_machine_does_not_see_is_not_made_by_writing(tmp_path: Path) -> None:
    root = Store(tmp_path / "shared")
    assert not root.exists()
    with pytest.raises(FileNotFoundError):
        (root / "sgdm-00").write("a", b"")
    assert not list(tmp_path.iterdir())
    root.make()
    (root / "sgdm-00").write("a", b"")
    assert root.exists() and root.names("sgdm-00") == ["sgdm-00/a"]


def test_a_place_is_tried_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_place("--checkpoints", str(tmp_path / "not" / "yet"))
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInput, match=r"--checkpoints .*/file: cannot be written to"):
        check_place("--checkpoints", str(tmp_path / "file"))
    with pytest.raises(InvalidInput, match="--checkpoints nowhere://x: cannot be written to"):
        check_place("--checkpoints", "nowhere://x")
    with pytest.raises(InvalidInput, match="credentials belong in the environment") as refused:
        check_place("--checkpoints", "s3://key:secret@bucket/x")
    assert "secret" not in str(refused.value)
    with serving(monkeypatch):
        check_place("--checkpoints", f"{BUCKET}/x")
        assert Store(BUCKET).names() == []
        with pytest.raises(InvalidInput, match="--checkpoints s3://other/x: cannot be written to"):
            check_place("--checkpoints", "s3://other/x")


@pytest.mark.slow
@pytest.mark.extensive
def test_a_search_whose_workers_write_to_object_storage_alone_survives_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--name", "a", "--epochs", "6", "--variants", "sgdm", "--confirm-seeds", "1"]
    arguments += ["--trials", "1", "--round-size", "1"]
    with serving(monkeypatch):
        running = Running(tmp_path, *arguments, "--checkpoints", f"{BUCKET}/x", "--checkpoint-seconds", "0")
        bucket = Store(f"{BUCKET}/x")

        def kept() -> list[str]:
            try:
                seen = load_search("a", output=str(tmp_path / "runs"))
            except InvalidInput:  # not begun
                return []
            return seen.root.names(*(record.folder_name for record in seen.records.values()))

        running.wait_until(lambda: any(name.partition("checkpoint-")[2] >= "000003" for name in kept()), every=0.5)
        running.kill()
        resumed = search(tmp_path, "--resume", "a")
        assert resumed.returncode == 0, resumed.stdout + resumed.stderr
        # The default point is the one setting that was tried: one run confirms it and the best.
        assert sorted(kept()) == ["sgdm.confirm-1/weights.pt"], "all else is pruned"
        assert bucket.names() == []
    check_whole(tmp_path, {"sgdm": 5})
    assert not list(tmp_path.glob("runs/a/*/weights.pt"))
