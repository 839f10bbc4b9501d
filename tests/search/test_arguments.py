"""From argv to a SearchSpec: every flag, every mistake in one line, and what a resumed search takes from its start."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks.simulated_search import Truth, simulate
from search_spaces import GROUPS, SPACES
from tuner import race
from tuner.core.errors import InvalidInput
from tuner.core.search_spec import NUM_FINALISTS, NUM_REPEATS, SearchSpec, flag
from tuner.core.variants import resolve_variants, shown
from tuner.search.arguments import parse
from tuner.search.dry_run import most_trainings, plan
from tuner.study.search_folder import save
from tuner.study.trial_record import POINTS


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
        refine_trials=5,
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
    argv += " --round-size 2 --alpha 0.01 --refine-trials 4 --sampler gp --confirm all"
    argv += " --targets 0.5 0.7 --no-early-stopping --epochs 2 --gpus-per-trial 0.25 --seed 7"
    spec, _ = parse(argv.split())
    assert spec == SearchSpec.from_flags(
        name="n",
        variants=("sgdm", "critical"),
        space=("lr.peak=0.1:0.2", "lr.warmup=0"),
        trials=3,
        round_size=2,
        alpha=0.01,
        refine_trials=4,
        sampler="gp",
        confirm="all",
        objective="pareto",
        targets=(0.5, 0.7),
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


def planned(*names: str, **flags: Any) -> list[str]:
    spec = SearchSpec.from_flags(variants=names, **flags)
    return list(plan(spec, resolve_variants(names, ())))


def test_a_plan_says_in_order_what_is_trained() -> None:
    text = " ".join(planned("sgdm", "adamw", "lpsgdm", "critical"))
    said = [
        "at most 16 rounds, in each of which every variant that is left tries 4 random settings",
        f"after {race.wins_needed(4)} straight wins or more, with an error rate of 0.05",
        "each variant that is refined tries 8 settings: the default point first, the last ones by tpe",
        f"The best {NUM_FINALISTS} of all and the default point are trained with {NUM_REPEATS} more seeds",
        "6 trainings of the chosen settings and 3 of the default point",
        "Only the variants left in the race, and the baseline, are refined and confirmed",
    ]
    assert [text.index(words) for words in said] == sorted(text.index(words) for words in said)
    assert "targets" not in text
    assert "No race" not in text


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"alpha": 0.0}, "None is put out (--alpha 0)."),
        ({"alpha": 0.2}, f"after {race.wins_needed(3, 0.2)} straight wins or more, with an error rate of 0.2"),
        ({"trials": 20}, f"These rounds can put nobody out: --trials {4 * race.wins_needed(3)} is the least that can."),
        ({"trials": 26}, "2 of 26 trials are left over, because a round has 4."),
        ({"confirm": "all"}, "All variants are refined and confirmed."),
        ({"sampler": "gp"}, "the last ones by gp"),
        ({"objective": "pareto", "trials": 9}, "No race: pareto has two goals, which give no order."),
        ({"objective": "pareto", "trials": 9}, "Each variant tries 9 settings"),
        ({"targets": "auto"}, "First 3 trainings of sgdm's default point set the targets"),
        ({"targets": "auto", "baseline": "adamw"}, "First 3 trainings of adamw's default point set the targets"),
    ],
)
def test_a_plan_says_what_a_flag_changes(flags: dict[str, Any], says: str) -> None:
    usual, changed = " ".join(planned("sgdm", "adamw")), " ".join(planned("sgdm", "adamw", **flags))
    assert says in changed and says not in usual


def test_a_plan_leaves_out_what_is_not_trained() -> None:
    text = " ".join(planned("sgdm", "adamw", refine_trials=0, confirm_seeds=0))
    assert "Race" in text and "refined" not in text and "fresh seed" not in text


def test_one_variant_has_no_race_and_all_trials_are_settings_of_its_own() -> None:
    text = " ".join(planned("sgdm", trials=5))
    assert "No race: there is one variant." in text and "Each variant tries 5 settings" in text
    assert "left in the race" not in text


def test_a_plan_names_the_points_that_come_after_the_default_point() -> None:
    """The default point of composed is that of sgdm, and is not trained twice."""
    lines = planned("composed", "sgdm", "lpsgdm@imagenet", refine_trials=6)
    assert [line for line in lines if " tries the points " in line] == [
        "composed tries the points lpsgdm, hybrid after its default point."
    ]


@pytest.mark.parametrize(
    "flags",
    [
        {"trials": 3, "round_size": 1, "refine_trials": 0, "confirm_seeds": 0},
        {"trials": 5, "round_size": 2, "refine_trials": 1, "confirm_seeds": 0},
        {"trials": 4, "round_size": 2, "refine_trials": 3, "confirm_seeds": 2, "objective": "auc"},
        {"trials": 3, "round_size": 1, "confirm_seeds": 3, "objective": "pareto"},
        {"trials": 2, "round_size": 2, "refine_trials": 9, "confirm_seeds": 3, "variants": ("sgdm",)},
        {"trials": 2, "round_size": 2, "refine_trials": 9, "confirm_seeds": 1, "targets": "auto"},
    ],
)
def test_the_most_that_a_plan_costs_is_what_is_trained_if_none_is_put_out(flags: dict[str, Any]) -> None:
    spec = SearchSpec.from_flags(**{"variants": ("sgdm", "adamw"), "alpha": 0.0, "early_stopping": False, **flags})
    made = simulate(spec, dict.fromkeys(spec.variants, Truth(speed=1.0, width=9.0)))
    records = list(made.records.values())
    most = most_trainings(spec, len(spec.variants))
    assert len(records) <= most
    # What luck spares: a default point among the best few, and settings that are chosen and the default point.
    repeated = {(record.variant, record.repeats) for record in records if record.repeats is not None}
    num_tried = Counter(record.variant for record in records if record.is_trial and record.repeats is None)
    spared = sum(min(num_tried[name], NUM_FINALISTS + 1) for name in spec.variants) - len(repeated) if repeated else 0
    confirmed = sum(len(made.confirmed(name, point)) for name in spec.variants for point in POINTS)
    twice = confirmed - sum(record.phase == "confirm" for record in records)
    assert len(records) + NUM_REPEATS * spared + twice == most and spared <= len(spec.variants)


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
        ("--trials 3", "--round-size 4: must be at least 1 and at most --trials 3"),
        ("--round-size 0", "--round-size 0: must be at least 1"),
        ("--alpha 1", "--alpha 1.0: must be at least 0 and below 1"),
        ("--refine-trials -1", "--refine-trials -1: must be at least 0"),
        ("--sampler tpee", "--sampler"),
        ("--confirm some", "--confirm"),
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
        ("--early-stopping maybe", "maybe"),
        ("--stop-at-target", "unknown flag --stop-at-target"),
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
        ("--refine-trials 9", "refine_trials", 9),
        ("--confirm all", "confirm", "all"),
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
        ("--trials 3", "--round-size 4: must be at least 1 and at most --trials 3"),
        ("--trials 5 --round-size 1", "--round-size 1: search 's' was started with 4, and a resumed search keeps it"),
        ("--refine-trials 4", "--refine-trials 4: a resumed search keeps its 5 or adds some"),
        ("--alpha 0.1", "--alpha 0.1: search 's' was started with 0.05"),
        ("--sampler random", "--sampler random: search 's' was started with tpe"),
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


def test_a_resumed_search_may_have_fewer_trials_than_the_usual_round(tmp_path: Path) -> None:
    spec = SearchSpec.from_flags(name="s", output=str(tmp_path), trials=2, round_size=1)
    (tmp_path / "s").mkdir()
    save(tmp_path / "s", spec, "id", {})
    grown, _ = parse(["--resume", "s", "--output", str(tmp_path), "--trials", "3"])
    assert (grown.trials, grown.round_size) == (3, 1)
    says = "--trials 1: a resumed search keeps its 2 trials or adds some"
    assert says in refused("--resume", "s", "--output", str(tmp_path), "--trials", "1")


def test_a_resumed_search_is_in_the_output_folder_itself(saved: SearchSpec) -> None:
    assert "--resume '../s': must be a plain folder name" in refused(
        "--resume", "../s", "--output", f"{saved.output}/s"
    )


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
