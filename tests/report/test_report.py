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
from collections import Counter
from collections.abc import Callable
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
from tuner.study.results import Search, load_search

TRUTHS = {"sgdm": Truth(speed=0.4), "adamw": Truth(speed=0.9, lr_best=0.003), "critical": Truth(speed=0.7)}
SPEC = SearchSpec(name="whole", variants=tuple(TRUTHS), trials=4)


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
        spec = SearchSpec.from_flags(**{"name": name, **changed})
        simulate(spec, dict.fromkeys(spec.variants, truth), output=folder)
    (folder / "empty").mkdir()
    search_folder.save(folder / "empty", SearchSpec(name="empty", variants=SPEC.variants), "id", {})
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


def costs(search: Search, variant: str, target: float) -> list[int]:
    """Gradient evaluations to a target of the confirmed runs of the best settings, which all reached it."""
    runs = search.confirmed(variant).values()
    return [next(m.gradient_evaluations for m in r.history if m.validation_accuracy >= target) for r in runs]


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
    pictures = {"convergence", "times_to_target", "tuning_curves", "schedules", "learning_rates"}
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
            assert row[3] == f"{statistics.median(some):.3g} [{min(some)}, {max(some)}] (97%)" and row[5] == "6/6"
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
    assert numbers == [statistics.median(some), min(some), max(some), 1 - 2 * 0.5**6, 6, 6]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("empty", ("No trial has begun, so there is no result yet.", "0 of 8 trials have ended")),
        (
            "unfinished",
            (
                "The search is unfinished: 18 of 27 confirmed runs have ended.",
                "no confirmed run of adamw's best settings has ended",
                "3 of 6 fresh seeds",
            ),
        ),
        ("diverged", ("no trial of adamw finished", "no trial finished, so there are no best settings")),
        ("one", ("sgdm is the only variant", "The search covers one workload")),
        ("unconfirmed", ("Nothing was confirmed (--confirm-seeds 0)", "no difference can be called real")),
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
    assert "## Limitations" in text and not re.search(r"\bnan\b", text)
    assert says[0] in printed or name == "diverged"
    header, *lines = (tmp_path / "time_to_target.csv").read_text().splitlines()
    confirmed = {"unfinished": {"sgdm", "critical"}, "one": {"sgdm"}}.get(name, set())
    assert header.startswith("variant,target,unit") and {line.split(",")[0] for line in lines} == confirmed
    assert (tmp_path / "report.html").read_text().startswith("<!DOCTYPE html>")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["whale"], "did you mean 'whole'"),
        (["whole", "zzzzzz"], "choose from apart, diverged, empty, one, other, unconfirmed, unfinished, whole"),
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
    assert lines[0]["adamw"] == f"{statistics.median(some):.3g} [{min(some)}, {max(some)}] (97%)"
    assert files(runs) == before, "elsewhere nothing"


def test_several_searches_are_reported_beside_them_unless_told(
    runs: Path, report: Callable[..., tuple[int, str]]
) -> None:
    status, _ = report("one", "diverged")
    assert status == 0 and (runs / "report-one-diverged" / "report.html").exists()
    shutil.rmtree(runs / "report-one-diverged")


def test_one_that_is_not_confirmed_is_told_from_one_that_missed() -> None:
    miss = SearchSpec(name="miss", variants=("sgdm",), trials=1)
    none = dataclasses.replace(miss, name="none", confirm_seeds=0)
    searches = [simulate(spec, {"sgdm": Truth(top=0.8)}) for spec in (miss, none)]
    assert [row[-1] for row in table(joint_report(searches), "workloads").rows] == [
        "not reached (97%)",
        "not confirmed",
    ]


def test_many_verdicts_are_put_in_short_and_stand_in_full_below() -> None:
    names = tuple(SPACES)[: CROWD + 2]
    spec = SearchSpec(name="many", variants=names, trials=2, early_stopping=False)
    truths = {name: Truth(width=1e9, speed=2.0 if name == "adamw" else 0.6) for name in names}
    made = report_of(simulate(spec, truths))
    said, full = section(made, "Result").sentences, section(made, "Which differences are real").sentences
    assert len(said) <= 3 < len(full) == len(names) - 1
    (faster,) = [sentence for sentence in said if "faster" in sentence]
    assert faster == "Settings found that are faster by equal seeds, while the variant is undecided: adamw."
    counts = Counter(name for sentence in said for name in sentence.partition(": ")[2].rstrip(".").split(", "))
    assert counts == Counter(name for name in names if name != "sgdm")


EVIL = '<script>alert("x")</script> | *x* [a](http://evil.example)'


def test_text_is_text_wherever_it_comes_from(tmp_path: Path) -> None:
    known = SPACES["sgdm"]
    own = Variant(name=EVIL, idea=EVIL, source=EVIL, fixed=known.fixed, searched=known.searched, default=known.default)
    spec = SearchSpec(name="evil", variants=("sgdm", EVIL), trials=2)
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
        "print([m for m in ('torch', 'ray', 'mlflow', 'pandas') if m in sys.modules])"
    )
    command = [sys.executable, "-c", program, "whole", "--output", str(runs), "--folder", str(tmp_path)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert shown.stdout.endswith("\n[]\n")


@pytest.mark.skipif(CHROMIUM is None and "CI" not in os.environ, reason="chromium is not installed")
def test_the_page_fits_a_phone_and_a_sheet_of_paper(written: Path, tmp_path: Path) -> None:
    phone = look(written / "report.html", tmp_path, width=360)
    assert phone["needed"] <= phone["width"] and phone["asked"] == []
    assert len(phone["pictures"]) == 5 and all(phone["pictures"])
    # 182 mm between the margins of A4
    paper = look(as_printed(written / "report.html", tmp_path / "paper.html"), tmp_path, width=688)
    assert paper["needed"] <= paper["width"] and paper["clipped"] == 0 and all(paper["pictures"])


def test_how_often_the_bands_hold_is_printed(written: Path) -> None:
    text = (written / "report.md").read_text().partition("## Tuning curves")[2].partition("## ")[0]
    assert re.search(r"the \d+% band held in [\d.]+% \[[\d.]+%, [\d.]+%\] of 1,000 simulated searches", text)


def test_nothing_stale_is_left_among_the_parts(tmp_path: Path) -> None:
    search = simulate(SearchSpec(name="x", variants=("sgdm",), trials=2), {"sgdm": Truth()})
    (tmp_path / "report").mkdir()
    for name in ("edges_of_before.csv", "importance_of_before.svg", "notes.txt"):
        (tmp_path / "report" / name).touch()
    write_report(search, tmp_path)
    assert not list((tmp_path / "report").glob("*_of_before*"))
    assert (tmp_path / "report" / "notes.txt").exists(), "somebody's own"


def test_without_its_studies_a_search_does_not_say_that_nothing_has_begun(tmp_path: Path) -> None:
    simulate(SearchSpec(name="x", variants=("sgdm",), trials=2), {"sgdm": Truth()}, output=tmp_path)
    (tmp_path / "x" / "optuna.db").unlink()
    report, _ = write_report(load_search("x", output=str(tmp_path)))
    assert "studies are missing" in report.sections[0].sentences[0]
