"""From argv to a SearchSpec: every flag, every mistake in one line, and what a resumed search takes from its start."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from search_spaces import GROUPS, SPACES
from tuner.core.errors import InvalidInput
from tuner.core.search_spec import SearchSpec, flag
from tuner.core.variants import shown
from tuner.search.arguments import parse
from tuner.search.dry_run import print_plan
from tuner.study.search_folder import save


def refused(*argv: str) -> str:
    with pytest.raises(InvalidInput) as caught:
        parse(argv)
    message = str(caught.value)
    assert message and "\n" not in message and not set(message) & set("│╭╮╰╯─"), message
    return message


@pytest.fixture
def saved(tmp_path: Path) -> SearchSpec:
    """A search that was started before."""
    spec = SearchSpec.from_flags(
        name="s",
        output=str(tmp_path),
        variants=("sgdm", "adamw"),
        trials=4,
        epochs=3,
        objective="auc",
        early_stopping=False,
        time_budget="1h",
        max_concurrent=2,
        dry_run=False,
    )
    (tmp_path / "s").mkdir()
    save(tmp_path / "s", spec, "the-id", {})
    return spec


def test_no_flags_are_the_defaults_and_a_name() -> None:
    spec, search_id = parse([])
    assert search_id is None
    assert spec.name is not None and spec.name.startswith("digits-")
    assert dataclasses.replace(spec, name=None) == SearchSpec()


def test_flags_reach_their_fields() -> None:
    argv = "--name n --variants sgdm critical --space lr.peak=0.1:0.2 lr.warmup=0 --trials 3 --objective pareto"
    argv += " --targets 0.5 0.7 --stop-at-target --no-early-stopping --epochs 2 --gpus-per-trial 0.25 --seed 7"
    spec, _ = parse(argv.split())
    assert spec == SearchSpec.from_flags(
        name="n",
        variants=("sgdm", "critical"),
        space=("lr.peak=0.1:0.2", "lr.warmup=0"),
        trials=3,
        objective="pareto",
        targets=(0.5, 0.7),
        stop_at_target=True,
        early_stopping=False,
        epochs=2,
        gpus_per_trial=0.25,
        seed=7,
    )


def test_help_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(["--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    for name in SearchSpec().flags():
        assert flag(name) in printed, name
    named = re.sub(r"[\s│]+", " ", printed).partition("a group (")[2].partition(")")[0]
    assert set(named.split(", ")) == set(GROUPS)


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What ``--list`` prints into a pipe of a narrow terminal, without Ray and torch."""
    program = (
        "import sys; from tuner.search.__main__ import main; status = main(['--list']);"
        "sys.exit(status or bool({'ray', 'torch', 'mlflow'} & set(sys.modules)))"
    )
    folder = tmp_path_factory.mktemp("list")
    ran = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env={**os.environ, "COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert not list(folder.iterdir())
    return ran.stdout


def test_a_plan_says_which_points_are_tried(capsys: pytest.CaptureFixture[str]) -> None:
    print_plan(SearchSpec(trials=8), [SPACES["composed"], SPACES["sgdm"]])
    lines = capsys.readouterr().out.splitlines()
    assert "Each variant: 4 trials drawn at random, then 4 by TPE" in next(line for line in lines if "TPE" in line)
    assert [line for line in lines if " replace " in line] == [
        "composed: the points sgdm, lpsgdm replace the first 2 by TPE."
    ]


@pytest.mark.parametrize("name", SPACES)
def test_the_list_shows_each_variant_whole_also_where_it_is_piped(listed: str, name: str) -> None:
    variant = SPACES[name]
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in listed.splitlines()]
    about = next(row for row in rows if row[:1] == [name])
    assert about[1] in GROUPS and about[2:] == [variant.controls or "", variant.idea, variant.source]
    settings = {row[1]: row[2:] for row in rows if row[:1] == [name] and row is not about}
    assert settings.keys() == variant.searched.keys()
    for setting, (allowed, default, condition) in settings.items():
        assert allowed == shown(variant.searched[setting]) and default == str(variant.default[setting])
        assert condition.partition("=")[0] == variant.when.get(setting, ("",))[0]
    for point, changes in variant.points.items():
        row = next(row for row in rows if row[:1] == [f"{name}@{point}"])
        assert row[1].split() == [f"{setting}={value}" for setting, value in changes.items()]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ("--trails 3", "unknown flag --trails: did you mean --trials?"),
        ("--trails=3", "unknown flag --trails: did you mean --trials?"),
        ("--no-early-stoping", "unknown flag --no-early-stoping: did you mean --early-stopping?"),
        ("--qqqqqqqqqq", "unknown flag --qqqqqqqqqq: see python -m tuner.search --help"),
        ("--trials", "--trials"),
        ("--trials many", "--trials"),
        ("--trials 1.5", "--trials"),
        ("--trials 0", "--trials 0: must be at least 1"),
        ("--epochs 0", "--epochs 0: must be at least 1"),
        ("--objective speed", "--objective"),
        ("--precision flaot32", "--precision"),
        ("--targets", "--targets"),
        ("--targets 2", "--targets 2.0: must be in (0, 1)"),
        ("--targets high", "--targets"),
        ("--variants", "--variants"),
        ("--variants sgdm sgdm", "--variants sgdm sgdm: names a variant twice"),
        ("--variants papers sgdm papers", "--variants papers sgdm papers: names a variant twice"),
        ("--time-budget soon", "--time-budget 'soon'"),
        ("--name ../up", "--name '../up': must be a plain folder name"),
        ("--name a --resume b", "--name a and --resume b: give one of them"),
        ("stray", "stray"),
        ("--stop-at-target maybe", "maybe"),
        ("-x", "-x"),
        ("--max-concurrent none", "--max-concurrent"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_flag(argv: str, says: str) -> None:
    assert says in refused(*argv.split())


def test_the_choices_are_told() -> None:
    message = refused("--objective", "speed")
    for choice in ("time-to-target", "accuracy", "auc", "pareto"):
        assert choice in message


def test_a_long_mistake_is_one_line() -> None:
    word = "many" * 100
    assert "--trials" in refused("--trials", word)


def test_underscores_are_no_mistake_when_another_flag_is() -> None:
    assert parse(["--batch_size", "8"])[0].training.workload.batch_size == 8
    assert "--trials" in refused("--batch_size", "8", "--trials", "many")


def test_a_resumed_search_has_the_settings_of_its_start(saved: SearchSpec) -> None:
    spec, search_id = parse(["--resume", "s", "--output", saved.output])
    assert search_id == "the-id"
    assert spec == dataclasses.replace(saved, resume="s", time_budget=None), "a budget of time is one program's"


@pytest.mark.parametrize(
    ("argv", "field", "value"),
    [
        ("--trials 8", "trials", 8),
        ("--variants sgdm adamw critical", "variants", ("sgdm", "adamw", "critical")),
        ("--max-concurrent 5", "max_concurrent", 5),
        ("--max-failures 0", "max_failures", 0),
        ("--time-budget 3m", "time_budget", "3m"),
        ("--address auto", "address", "auto"),
        ("--download", "download", True),
        ("--dry-run", "dry_run", True),
        ("--list", "list", True),
        ("--variants all", "variants", ("all",)),
        ("--name s", "name", "s"),
        ("--epochs 3", "epochs", 3),
    ],
)
def test_a_resumed_search_may_change_what_changes_no_result(
    saved: SearchSpec, argv: str, field: str, value: object
) -> None:
    spec, _ = parse(["--resume", "s", "--output", saved.output, *argv.split()])
    assert spec.flags()[field] == value
    assert spec.objective == "auc" and not spec.early_stopping


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ("--epochs 4", "--epochs 4: search 's' was started with 3, and a resumed search keeps it"),
        ("--trials 3", "--trials 3: a resumed search keeps its 4 trials or adds some"),
        ("--variants sgdm", "--variants: a resumed search keeps all its variants, adamw too"),
        ("--early-stopping", "--early-stopping True"),
        ("--objective accuracy", "--objective accuracy"),
        ("--seed 9", "--seed 9"),
        ("--trials many", "--trials"),
        ("--trails 9", "did you mean --trials?"),
    ],
)
def test_a_resumed_search_refuses_by_name_what_would(saved: SearchSpec, argv: str, says: str) -> None:
    assert says in refused("--resume", "s", "--output", saved.output, *argv.split())


def test_resuming_what_is_not_there_names_the_nearest(saved: SearchSpec) -> None:
    assert "did you mean 's'?" in refused("--resume", "ss", "--output", saved.output)
    assert "there is no search in" in refused("--resume", "s", "--output", f"{saved.output}/s")


def test_the_same_folder_spelled_otherwise_is_the_same_search(
    saved: SearchSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(saved.output)
    assert parse(["--resume", "s", "--output", "."])[0].trials == 4
    assert parse(["--resume", "s", "--output", f"{saved.output}/"])[0].trials == 4


@pytest.mark.parametrize("name", ["storage", "tracking_uri"])
def test_a_password_is_asked_for_again(tmp_path: Path, name: str) -> None:
    (tmp_path / "s").mkdir()
    uri = "postgresql://me:swordfish@host/db"
    values: dict[str, Any] = {"name": "s", "output": str(tmp_path), name: uri}
    spec = SearchSpec.from_flags(**values)
    save(tmp_path / "s", spec, "id", {})
    resume = ["--resume", "s", "--output", str(tmp_path)]
    again = f"{flag(name)}: give postgresql://me:***@host/db again, its password is not kept"
    assert refused(*resume) == again
    assert refused(*resume, flag(name), "postgresql://me:***@host/db") == again
    assert getattr(parse([*resume, flag(name), uri])[0], name) == uri
    other = "postgresql://me:swordfish@elsewhere/db"
    assert getattr(parse([*resume, flag(name), other])[0], name) == other
