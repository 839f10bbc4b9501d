"""What stands in a report, its files, and the command that writes it, for searches in every state."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from benchmarks.simulated_search import Truth, simulate
from search_spaces import SPACES, Variant
from tests.browser import CHROMIUM, as_printed, look
from tuner.core.search_spec import SearchSpec
from tuner.report import __main__ as command
from tuner.report.document import Report, Section, Table
from tuner.report.figures import CROWD
from tuner.report.outline import joint_report, report_of
from tuner.report.page import as_html, as_markdown, write_report
from tuner.study import search_folder
from tuner.study.optuna_study import open_storage, open_studies
from tuner.study.results import Search, load_search

TRUTHS = {"sgdm": Truth(speed=0.5), "adamw": Truth(speed=0.9, lr_best=0.003), "critical": Truth(speed=0.6)}
SPEC = SearchSpec(name="whole", variants=tuple(TRUTHS), trials=40, round_size=2, refine_trials=2, confirm="all")
PICTURES = {
    *("convergence", "evidence", "race_cost", "rounds_won", "times_to_target", "tuning_curves", "schedules"),
    *("learning_rates", "importance"),
}
SMALL = {"round_size": 1, "refine_trials": 1, "confirm": "all"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, quick_sqlite: None) -> Path:
    """A folder of searches: finished ones; one cut off; one that has not begun; one in which all diverged; ..."""
    folder = tmp_path_factory.mktemp("runs")
    simulate(SPEC, TRUTHS, output=folder)
    for name, changed in {
        "diverged": {"variants": ("sgdm", "adamw"), "trials": 2},
        "one": {"variants": ("sgdm",), "trials": 1},
        "unconfirmed": {"variants": ("sgdm", "adamw"), "trials": 2, "confirm_seeds": 0},
        "other": {"variants": ("lion", "adamw"), "trials": 2},
        "apart": {"variants": ("lion",), "trials": 1, "confirm_seeds": 0},
    }.items():
        truth = Truth(lr_limit=0) if name == "diverged" else Truth(lr_best=0.003)
        spec = SearchSpec.from_flags(**{"name": name, **SMALL, **changed})
        simulate(spec, dict.fromkeys(spec.variants, truth), output=folder)
    (folder / "empty").mkdir()
    search_folder.save(folder / "empty", SearchSpec(name="empty", variants=SPEC.variants), "id", {})
    measured = SearchSpec(name="measured", variants=("sgdm", "adamw"), targets="auto")
    made = simulate(dataclasses.replace(measured, trials=4, refine_trials=1), TRUTHS, output=folder)
    (made.folder / "optuna.db").unlink()
    open_studies(measured, made.variants, open_storage(f"sqlite:///{made.folder / 'optuna.db'}"), search="measured")
    for path in made.folder.iterdir():
        if path.is_dir() and path.name not in {record.folder_name for record in made.pilots()[:2]}:
            shutil.rmtree(path)
    search_folder.save(made.folder, measured, made.search_id, {})
    cut = simulate(dataclasses.replace(SPEC, name="unfinished"), TRUTHS, output=folder)
    for run in [*cut.confirmed("adamw").values(), *list(cut.confirmed("critical").values())[3:]]:
        shutil.rmtree(cut.folder / run.folder_name)
    return folder


@pytest.fixture(scope="module")
def written(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the whole search, by a process of its own whose sets have an order of their own."""
    folder = tmp_path_factory.mktemp("written")
    arguments = ["-m", "tuner.report", "whole", "--output", str(runs), "--folder", str(folder)]
    subprocess.run([sys.executable, *arguments], env={**os.environ, "PYTHONHASHSEED": "7"}, check=True)
    return folder


@pytest.fixture
def report(runs: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Runs the command; its exit status and what it printed."""

    def run(*arguments: str | Path) -> tuple[int, str]:
        status = command.main([*map(str, arguments), "--output", str(runs)])
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    return run


def files(folder: Path) -> dict[str, str]:
    """File -> digest of its bytes."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith("optuna.db")
    }


def table(report: Report, name: str) -> Table:
    return next(table for section in report.sections for table in section.tables if table.name == name)


def section(report: Report, title: str) -> Section:
    return next(section for section in report.sections if section.title == title)


def costs(search: Search, variant: str, target: float) -> list[float]:
    """Gradient evaluations to a target of the confirmed runs of the best settings, which all reached it."""
    found = []
    for run in search.confirmed(variant).values():
        accuracies = [0.1, *(metrics.validation_accuracy for metrics in run.history)]
        k = next(k for k, accuracy in enumerate(accuracies) if accuracy >= target)
        found.append(16 * (k - 1 + (target - accuracies[k - 1]) / (accuracies[k] - accuracies[k - 1])))
    return found


def shown(some: Sequence[float]) -> str:
    """Median and interval of six costs, as a report shows them."""
    middle, low, high = (
        f"{x:.0f}" if x >= 100 else f"{x:.3g}" for x in (statistics.median(some), min(some), max(some))
    )
    return f"{middle} [{low}, {high}] (97%)"


def test_two_reports_of_one_search_are_the_same_bytes(
    runs: Path, written: Path, report: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    status, printed = report("whole", "--folder", tmp_path)
    assert status == 0 and "unfinished" not in printed
    names = ("report.html", "report.md", "report", "time_to_target.csv")
    assert {path.name for path in tmp_path.iterdir()} == set(names)
    assert printed.splitlines()[-4:] == [str(tmp_path / name) for name in names]
    assert files(tmp_path) == files(written)


def test_pictures_are_files_that_the_text_names(written: Path) -> None:
    pictures = PICTURES
    for ending in ("png", "svg"):
        assert {path.stem for path in (written / "report").glob(f"*.{ending}")} == pictures
    linked = re.findall(r"\]\((report/[^)]+)\)", (written / "report.md").read_text())
    assert len(linked) == len(pictures) and all((written / name).exists() for name in linked)


def test_the_order_and_the_numbers_are_those_computed_by_hand() -> None:
    search = simulate(SPEC, TRUTHS)
    made = report_of(search)
    assert [row[0] for row in table(made, "leaderboard").rows] == ["adamw", "critical", "sgdm"], "as their speeds"
    for row in table(made, "times_to_95").rows:
        if row[1] == "best settings":
            some = costs(search, row[0], 0.95)
            assert row[3] == shown(some) and row[5] == "6/6"
    assert [row[0] for row in table(made, "times_to_90").rows] == ["adamw", "critical", "sgdm"] * 2
    spent = sum(record.history[-1].gradient_evaluations for record in search.records.values())
    assert table(made, "budgets").rows[-1][4] == str(spent)


def test_the_times_as_csv(written: Path) -> None:
    with (written / "time_to_target.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == ["variant", "target", "unit", "median", "low", "high", "level", "reached", "num_seeds"]
    places = [(line["variant"], line["target"], line["unit"]) for line in lines]
    units = ("epochs", "gradient_evaluations", "seconds")
    assert sorted(places) == sorted((v, t, u) for v in TRUTHS for t in ("0.9", "0.95") for u in units)
    some = costs(simulate(SPEC, TRUTHS), "adamw", 0.95)
    line = lines[places.index(("adamw", "0.95", "gradient_evaluations"))]
    numbers = [float(line[name]) for name in ("median", "low", "high", "level", "reached", "num_seeds")]
    assert numbers == pytest.approx([statistics.median(some), min(some), max(some), 1 - 2 * 0.5**6, 6, 6])


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("empty", ("No trial has begun, so there is no result yet.",)),
        (
            "measured",
            ("There is no result yet: 2 of 3 trainings that set the targets have ended.", "sgdm | pilot | 2 |"),
        ),
        (
            "unfinished",
            (
                "adamw is the fastest of 3 variants that may try 2 random settings each",
                "The search is unfinished: ",
                "no confirmed run of adamw's best settings has ended",
                "3 of 6 fresh seeds",
            ),
        ),
        ("diverged", ("no trial of adamw finished", "no trial finished, so there are no best settings")),
        ("one", ("sgdm is the only variant", "The search covers one workload")),
        (
            "unconfirmed",
            ("sgdm and adamw are not told apart after 2 rounds", "Nothing was confirmed (--confirm-seeds 0)"),
        ),
    ],
)
def test_of_every_search_the_report_says_what_can_be_said(
    report: Callable[..., tuple[int, str]], tmp_path: Path, name: str, says: tuple[str, ...]
) -> None:
    status, printed = report(name, "--folder", tmp_path)
    assert status == 0, printed
    text = (tmp_path / "report.md").read_text()
    for sentence in says:
        assert sentence in text.replace("\\", ""), sentence
    assert ("## Limitations" in text) == (name != "measured") and not re.search(r"\bnan\b", text)
    assert says[0] in printed or name == "diverged"
    header, *lines = (tmp_path / "time_to_target.csv").read_text().splitlines()
    confirmed = {"unfinished": {"sgdm", "critical"}, "one": {"sgdm"}}.get(name, set())
    assert header.startswith("variant,target,unit") and {line.split(",")[0] for line in lines} == confirmed
    assert (tmp_path / "report.html").read_text().startswith("<!DOCTYPE html>")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["whale"], "did you mean 'whole'"),
        (["whole", "zzzzzz"], "choose from apart, diverged, empty, measured, one, other, unconfirmed, unfinished"),
        (["whole", "whole"], "whole: is given twice"),
        (["whole", "apart"], "whole apart: these searches have no variant in common"),
        (["one", "--folder", "whole/search.json/x"], "--folder"),
        (["one", "one/"], "one: is given twice"),
        (["../whole"], "give its name alone, whole, and its folder with --output .."),
        (["one", "--storage", "nonsense"], "--storage: the studies of one cannot be read"),
        (["one", "--storage", "sqlite:///none.db"], "--storage sqlite:///none.db: holds no study of one"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(
    runs: Path, report: Callable[..., tuple[int, str]], arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs)
    before = files(runs)
    status, printed = report(*arguments)
    assert status == 2 and says in printed
    assert printed.startswith("error: ") and printed.count("\n") == 1
    assert files(runs) == before


def test_a_folder_that_cannot_be_written(report: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    status, printed = report("one", "--folder", tmp_path / "file" / "below")
    assert status == 2 and printed.startswith(f"error: --folder {tmp_path / 'file' / 'below'}")
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_several_searches_share_a_table_and_a_profile(
    runs: Path, report: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    before = files(runs)
    status, printed = report("whole", "other", "--folder", tmp_path)
    assert status == 0 and "left out, because not every search has them: sgdm, critical, lion." in printed
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"workloads.csv", "profile.png", "profile.svg"}
    with (tmp_path / "report" / "workloads.csv").open() as file:
        lines = list(csv.DictReader(file))
    some = costs(simulate(SPEC, TRUTHS), "adamw", 0.95)
    assert [line["search"] for line in lines] == ["whole", "other"]
    assert lines[0]["adamw"] == shown(some)
    assert files(runs) == before, "elsewhere nothing"


def test_several_searches_are_reported_beside_them_unless_told(
    runs: Path, report: Callable[..., tuple[int, str]]
) -> None:
    status, _ = report("one", "diverged")
    assert status == 0 and (runs / "report-one-diverged" / "report.html").exists()
    shutil.rmtree(runs / "report-one-diverged")


def test_one_that_is_not_confirmed_is_told_from_one_that_missed() -> None:
    miss = SearchSpec(name="miss", variants=("sgdm",), trials=1, round_size=1)
    none = dataclasses.replace(miss, name="none", confirm_seeds=0)
    searches = [simulate(spec, {"sgdm": Truth(top=0.8)}) for spec in (miss, none)]
    assert [row[-1] for row in table(joint_report(searches), "workloads").rows] == [
        "not reached (97%)",
        "not confirmed",
    ]


def test_the_first_sentence_is_the_answer_and_no_other_contradicts_it() -> None:
    search = simulate(dataclasses.replace(SPEC, confirm="left"), TRUTHS)
    made = report_of(search)
    assert [one.title for one in made.sections[:2]] == ["Result", "Race"]
    said, full = section(made, "Result").sentences, section(made, "Which differences are real").sentences
    assert said[0].startswith("adamw is the fastest of 3 variants that may try 2 random settings each (error rate 5%)")
    assert full[0].startswith("adamw is faster than sgdm"), full
    assert not any("adamw" in sentence and "undecided" in sentence for sentence in full)
    assert table(made, "leaderboard").rows[0][:2] == ("adamw", "fastest")
    assert [row[7] for row in table(made, "verdict").rows if row[0] == "adamw"] == ["faster"]


def test_of_many_variants_a_few_are_named_at_first_and_all_below() -> None:
    names = tuple(SPACES)[: CROWD + 2]
    spec = SearchSpec(name="many", variants=names, trials=2, round_size=1, refine_trials=0, confirm_seeds=0)
    made = report_of(simulate(spec, dict.fromkeys(names, Truth())))
    said, full = section(made, "Result").sentences, section(made, "Which differences are real").sentences
    assert f"{', '.join(names[:6])} and 2 more are not told apart after 2 rounds" in said[0]
    assert len(full) == len(names) - 1 and all(any(name in one for one in full) for name in names)


EVIL = '<script>alert("x")</script> | *x* [a](http://evil.example)'


def test_text_is_text_wherever_it_comes_from(tmp_path: Path) -> None:
    known = SPACES["sgdm"]
    own = Variant(name=EVIL, idea=EVIL, source=EVIL, fixed=known.fixed, searched=known.searched, default=known.default)
    spec = SearchSpec(name="evil", variants=("sgdm", EVIL), trials=8, refine_trials=2, confirm="all")
    search = simulate(spec, {"sgdm": Truth(), EVIL: Truth(lr_limit=0.2)}, variants=[known, own])
    made = report_of(search)
    page, text = as_html(made), as_markdown(made)
    assert page.count("&lt;script&gt;") > 5 and "<script" not in page
    assert text.count("&lt;script&gt;") > 5 and "<script" not in text
    assert "evil.example" in page and 'href="http' not in page and "](http" not in text
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1, block


def test_the_command_needs_no_service(runs: Path, tmp_path: Path) -> None:
    program = (
        "import sys\nfrom tuner.report.__main__ import main\nassert main(sys.argv[1:]) == 0\n"
        "print([m for m in ('torch', 'ray', 'mlflow') if m in sys.modules])"
    )
    command = [sys.executable, "-c", program, "whole", "--output", str(runs), "--folder", str(tmp_path)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert shown.stdout.endswith("\n[]\n")


@pytest.mark.skipif(CHROMIUM is None and "CI" not in os.environ, reason="chromium is not installed")
def test_the_page_fits_a_phone_and_a_sheet_of_paper(written: Path, tmp_path: Path) -> None:
    phone = look(written / "report.html", tmp_path, width=360)
    assert phone["needed"] <= phone["width"] and phone["asked"] == []
    assert len(phone["pictures"]) == len(PICTURES) and all(phone["pictures"])
    # 182 mm between the margins of A4
    paper = look(as_printed(written / "report.html", tmp_path / "paper.html"), tmp_path, width=688)
    assert paper["needed"] <= paper["width"] and paper["clipped"] == 0 and all(paper["pictures"])


def test_nothing_stale_is_left_among_the_parts(tmp_path: Path) -> None:
    search = simulate(SearchSpec(name="x", variants=("sgdm",), trials=2, round_size=1), {"sgdm": Truth()})
    (tmp_path / "report").mkdir()
    for name in ("edges_of_before.csv", "importance_of_before.svg", "notes.txt"):
        (tmp_path / "report" / name).touch()
    write_report(search, tmp_path)
    assert not list((tmp_path / "report").glob("*_of_before*"))
    assert (tmp_path / "report" / "notes.txt").exists(), "somebody's own"


def test_without_its_studies_a_search_does_not_say_that_nothing_has_begun(tmp_path: Path) -> None:
    simulate(SearchSpec(name="x", variants=("sgdm",), trials=2, round_size=1), {"sgdm": Truth()}, output=tmp_path)
    (tmp_path / "x" / "optuna.db").unlink()
    report, _ = write_report(load_search("x", output=str(tmp_path)))
    assert "studies are missing" in report.sections[0].sentences[0]
