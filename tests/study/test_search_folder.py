"""A search's folder: saved whole, loaded as it was, held by one program at a time, never a danger to other files."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tuner.core.errors import InvalidInput
from tuner.core.search_spec import SearchSpec
from tuner.study.search_folder import SPEC_FILE, check_new, load, locked, new_id, save, with_name


def refused(output: Path, name: str) -> str:
    with pytest.raises(InvalidInput) as caught:
        load(str(output), name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_search_without_a_name_is_named_after_its_workload_and_the_time() -> None:
    name = with_name(SearchSpec.from_flags(workload="cifar10")).name
    assert name is not None and re.fullmatch(r"cifar10-\d{8}-\d{6}", name)
    own = with_name(SearchSpec.from_flags(workload="my.module:data")).name
    assert own is not None and re.fullmatch(r"my\.module-data-\d{8}-\d{6}", own)
    assert with_name(SearchSpec(name="mine")).name == "mine"


def test_a_spec_comes_back_as_it_was(tmp_path: Path) -> None:
    spec = SearchSpec.from_flags(
        name="s",
        output=str(tmp_path.parent),
        variants=("sgdm",),
        space=("lr.peak=0.1:0.2", "lr.warmup=0"),
        targets=(0.5, 0.925),
        gpus_per_trial=0.25,
        storage="sqlite:///o.db",
        time_budget="2h",
        data_dir="ü b",
        compile=True,
    )
    save(tmp_path, spec, "id", {})
    assert load(str(tmp_path.parent), tmp_path.name) == (spec, "id")
    assert [path.name for path in tmp_path.iterdir()] == [SPEC_FILE], "no draft is left"


def test_no_password_is_saved(tmp_path: Path) -> None:
    spec = SearchSpec(name="s", storage="postgresql://me:swordfish@h/d", tracking_uri="http://me:swordfish@h")
    save(tmp_path, spec, "id", {})
    assert "swordfish" not in (tmp_path / SPEC_FILE).read_text()
    saved = load(str(tmp_path.parent), tmp_path.name)[0]
    assert (saved.storage, saved.tracking_uri) == ("postgresql://me:***@h/d", "http://me:***@h")


@pytest.mark.parametrize("odd", ["#", "/", "?"])
def test_no_password_of_odd_characters_is_saved(tmp_path: Path, odd: str) -> None:
    save(tmp_path, SearchSpec(name="s", storage=f"postgresql://me:a{odd}swordfish@h/d"), "id", {})
    assert "swordfish" not in (tmp_path / SPEC_FILE).read_text()


def test_a_save_that_breaks_off_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, SearchSpec(name="s", trials=5), "id", {})

    def die(*args: object, **named: object) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", die)
        save(tmp_path, SearchSpec(name="s", trials=9), "id", {})
    assert load(str(tmp_path.parent), tmp_path.name)[0].trials == 5


def test_the_nearest_search_is_named(tmp_path: Path) -> None:
    assert refused(tmp_path, "first") == f"--resume first: there is no search in {tmp_path}"
    (tmp_path / "first").mkdir()
    save(tmp_path / "first", SearchSpec(name="first"), "id", {})
    (tmp_path / "fist-notes").mkdir()
    assert "did you mean 'first'?" in refused(tmp_path, "fist")
    (tmp_path / "file").touch()
    assert "first" in refused(tmp_path, "file")
    assert "--resume first: there is no search in" in refused(tmp_path / "absent", "first")


def test_a_search_of_a_version_without_a_race_is_refused_as_such(tmp_path: Path) -> None:
    save(tmp_path, SearchSpec(name="s"), "id", {})
    saved = json.loads((tmp_path / SPEC_FILE).read_text())
    del saved["spec"]["round_size"]
    saved["spec"]["stop_at_target"] = False
    (tmp_path / SPEC_FILE).write_text(json.dumps(saved))
    assert "it is of a version that did not race variants" in refused(tmp_path.parent, tmp_path.name)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "{}",
        '{"id": "x"}',
        '{"id": "x", "spec": {"trails": 3}}',
        '{"id": "x", "spec": {"trials": 0}}',
        "\udcff",
        *(
            pytest.param(content)
            for content in ("[]", "null", '{"id": "x", "spec": []}', '{"id": "x", "spec": {"trials": "many"}}')
        ),
    ],
)
def test_a_file_that_is_no_spec_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / SPEC_FILE).write_bytes(content.encode(errors="surrogateescape"))
    assert f"--resume {tmp_path.name}: its {SPEC_FILE} cannot be read" in refused(tmp_path.parent, tmp_path.name)


def test_the_name_of_a_search_that_exists_is_refused(tmp_path: Path) -> None:
    spec = SearchSpec(name="s", output=str(tmp_path))
    check_new(spec)
    (tmp_path / "s").mkdir()
    check_new(spec)
    save(tmp_path / "s", spec, "id", {})
    with pytest.raises(InvalidInput, match="--name s: this search exists; resume it with --resume s"):
        check_new(spec)


def test_ids_differ() -> None:
    assert len({new_id() for _ in range(100)}) == 100


def test_one_program_at_a_time_and_the_next_after_it_was_killed(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from tuner.study.search_folder import locked
with locked(Path({str(tmp_path / "s")!r})):
    print("held", flush=True)
    input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(InvalidInput, match="search s is being run by another program"), locked(tmp_path / "s"):
            pass
        assert (tmp_path / "s").is_dir(), "what another program works on stays"
        other.kill()
    with locked(tmp_path / "s"):
        pass


def test_bad_input_leaves_nothing_that_was_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="bad"), locked(tmp_path / "a" / "b" / "s"):
        raise InvalidInput("bad")
    assert not list(tmp_path.iterdir())


def test_bad_input_leaves_a_search_that_was_saved(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="bad"), locked(tmp_path / "s"):
        save(tmp_path / "s", SearchSpec(name="s"), "id", {})
        raise InvalidInput("bad")
    assert (tmp_path / "s" / SPEC_FILE).exists()


def test_ctrl_c_leaves_nothing_of_a_search_that_was_not_saved_and_all_of_one_that_was(tmp_path: Path) -> None:
    for saved in (False, True):
        with pytest.raises(KeyboardInterrupt), locked(tmp_path / "s"):
            if saved:
                save(tmp_path / "s", SearchSpec(name="s"), "id", {})
            raise KeyboardInterrupt
        assert (tmp_path / "s").exists() == saved


def test_bad_input_leaves_the_files_that_a_user_had_in_the_folder(tmp_path: Path) -> None:
    """``--output . --name thesis``: a folder that is no search's may be anything."""
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    with pytest.raises(InvalidInput, match="bad"), locked(tmp_path / "thesis"):
        raise InvalidInput("bad")
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "years of work"


def test_bad_input_leaves_what_another_program_made_beside_it(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="bad"), locked(tmp_path / "runs" / "s"):
        (tmp_path / "runs" / "other").mkdir()
        raise InvalidInput("bad")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["other"]
