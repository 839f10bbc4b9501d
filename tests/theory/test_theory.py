"""The command ``python -m tuner.theory``: what it says is the library's, and what it cannot use it says in a line."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tuner.theory import critical_lr, make_problem, plateau, standard_problem
from tuner.theory.__main__ import main
from tuner.theory.prediction import predict
from tuner.theory.steps import Sgd

pytestmark = pytest.mark.usefixtures("one_thread")
QUICK = ["--lr", "0.4", "--horizon", "0.5"]


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(printed: str) -> dict[str, str]:
    """What stands at the beginning of a line -> the rest."""
    lines = (re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in printed.splitlines())
    return {line[0]: line[1] for line in lines if len(line) == 2}


def number(text: str) -> float:
    found = re.search(r"-?[\d.]+(e[-+]\d+)?", text)
    assert found is not None, text
    return float(found.group())


@pytest.mark.parametrize(
    ("flags", "sgd"),
    [
        (["--lr", "0.4"], Sgd(lr=0.4)),
        (["--lr", "0.1", "--momentum", "0.5", "--batch", "2"], Sgd(lr=0.1, momentum=0.5, batch=2)),
        (["--lr", "0.2", "--law", "gamma", "--shape", "3"], Sgd(lr=0.2, law="gamma", shape=3.0)),
    ],
)
def test_its_figures_are_the_librarys(flags: list[str], sgd: Sgd, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*flags, "--no-pictures", "--goal", "0.9", "--horizon", "6"]) == 0
    told = said(capsys.readouterr().out)
    problem = standard_problem()
    square = float(problem.share @ (problem.lam * problem.target**2)) / 2
    found = predict(problem, sgd, dimension=400, goal=0.1 * square, horizon=6.0)
    assert number(told["effective learning rate"]) == pytest.approx(sgd.lr / (1 - sgd.momentum), rel=1e-3)  # type: ignore[operator]
    assert number(told["critical learning rate"]) == pytest.approx(found.critical_lr, rel=1e-3)
    assert number(told["at initial weights"]) == pytest.approx(found.first_critical_lr, rel=1e-3)
    assert number(told["linearised, d = 400"]) == pytest.approx(found.linearised_critical_lr, rel=1e-3)
    assert found.rate is not None and number(told["late rate"]) == pytest.approx(found.rate, rel=1e-3)
    assert number(told["time to 0.9 explained"]) == pytest.approx(found.time_to_goal, rel=5e-3)
    assert f"{found.time_to_goal * 400:.0f} steps" in told["time to 0.9 explained"]
    assert told["plateau"] == f"0, initial risk {problem.first_risk:.4g}"


def test_a_problem_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    own = ["--lam", "1", "0.5", "--target", "1", "-2", "--start", "0.5", "0.1", "--noise", "0.2"]
    assert main([*QUICK, *own, "--no-pictures"]) == 0
    told = said(capsys.readouterr().out)
    problem = make_problem([1, 0.5], [1, -2], u=0.5, v=0.1, noise=0.2)
    assert number(told["critical learning rate"]) == pytest.approx(critical_lr([1, 0.5], [1, -2]), rel=1e-3)
    assert number(told["plateau"]) == pytest.approx(plateau(problem, 0.4), rel=1e-3)
    assert told["late rate"].startswith("none")
    assert main([*QUICK, *own, "--grid", "--no-pictures"]) == 0
    grid = number(said(capsys.readouterr().out)["critical learning rate"])
    assert grid == pytest.approx(critical_lr([1, 1, 0.5, 0.5], [1, -2, 1, -2]), rel=1e-3)


def test_negative_numbers_with_exponents_are_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for target in ("-0.5", "-5e-1", "-.5E0", "-5.e-01"):
        assert main(["--lr", "0.1", "--lam", "1", "--target", target, "--no-pictures"]) == 0
        said.append(capsys.readouterr().out)
    assert len(set(said)) == 1


def test_above_the_critical_rate_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--lr", "2", "--horizon", "0.5", "--no-pictures"]) == 0
    printed = capsys.readouterr().out
    assert "--lr is 1.5 times it" in printed and "Above the critical rate, runs end at the plateau" in printed
    assert number(said(printed)["plateau"]) == pytest.approx(plateau(standard_problem(), 2.0), rel=1e-3)
    # Weights that are large at first are unstable far below it.
    large = ["--lr", "0.5", "--lam", "1", "--target", "0.1", "--start", "1.5", "-0.5", "--horizon", "0.1"]
    assert main([*large, "--no-pictures"]) == 0
    printed = capsys.readouterr().out
    assert "--lr is 0.05 times it" in printed and number(said(printed)["at initial weights"]) == 0.8
    assert "Above" not in printed
    assert main([*large, "--lr", "0.9", "--no-pictures"]) == 0
    assert "Above the critical rate of the initial weights, the risk rises at first" in capsys.readouterr().out
    assert main([*QUICK, "--no-pictures"]) == 0
    assert "Above" not in capsys.readouterr().out


def test_what_the_figures_leave_out_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUICK, "--decay", "1e-3", "--no-pictures"]) == 0
    printed = capsys.readouterr().out
    assert "ignore weight decay" in printed
    assert said(printed)["time to 0.95 explained"] == "not by time 0.5", "which is not never"
    assert main(["--lr", "0.04", "--horizon", "0.5", "--momentum", "0.9", "--dimension", "20", "--no-pictures"]) == 0
    assert "At d = 20 some directions oscillate" in capsys.readouterr().out


def test_pictures_lie_in_the_folder_and_diverged_runs_are_counted(
    empty: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Warnings are errors here: of infinite risks, too."""
    size = ["--dimension", "8", "--runs", "3", "--lam", "1", "--target", "1", "--horizon", "6"]
    assert main(["--lr", "1.7", *size, "--folder", "some/where"]) == 0
    assert sorted(path.name for path in (empty / "some/where").iterdir()) == ["plateau.png", "risk.png"]
    assert "some/where: risk.png, plateau.png; 3 of 3 runs of SGD diverged" in capsys.readouterr().out
    assert main([*QUICK, "--runs", "0"]) == 0
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (empty / "theory").iterdir())


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--lr -0.1", "lr = -0.1"),
        ("--lr 0", "lr = 0"),
        ("--lr nan", "lr = nan"),
        ("--lr 1e300", "of order 1"),
        ("--lr .1 --momentum 1", "momentum = 1"),
        ("--lr .1 --batch 0", "batch = 0"),
        ("--lr .1 --batch 1000000000", "too many to simulate"),
        ("--lr .1 --law gamma --shape 0", "shape = 0"),
        ("--lr .1 --decay -1", "decay = -1"),
        ("--lr .1 --noise -1", "noise = -1"),
        ("--lr .1 --lam 1 2 --target 1", "1 values for 2"),
        ("--lr .1 --lam 1", "must be given together"),
        ("--lr .1 --lam -1 2 --target 1 1", "at least 0"),
        ("--lr .1 --lam 1 --target 0", "no variance to explain"),
        ("--lr .1 --goal 0", "--goal 0"),
        ("--lr .1 --goal 1", "--goal 1"),
        ("--lr .1 --goal nan", "--goal nan"),
        ("--lr .1 --horizon 1e9", "--horizon 1000000000.0: must be in (0, 1000]"),
        ("--lr .1 --start 1 1", "differ in size"),
        ("--lr .1 --start 1 -1", "differ in size"),
        ("--lr .1 --start 1e200 0", "below"),
        ("--lr .1 --horizon nan", "--horizon nan"),
        ("--lr .1 --horizon 0", "--horizon 0"),
        ("--lr .1 --runs -1", "--runs -1"),
        ("--lr .1 --dimension 19", "dimension = 19: too few"),
        ("--lr .1 --dimension 0", "dimension = 0: too few"),
        ("--lr .1 --seed -1", "--seed -1"),
        ("--lr .1 --horizon .1 --folder file", "--folder file: cannot be made (File exists)"),
        ("--lr .1 --horizon .1 --folder file/below", "cannot be made (Not a directory)"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    flags: str, words: str, empty: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (empty / "file").touch()
    assert main(flags.split()) == 2
    printed = capsys.readouterr()
    assert words in printed.err and printed.err.startswith("error: ") and printed.err.count("\n") == 1
    assert printed.out == ""
    assert [path.name for path in empty.iterdir()] == ["file"]


def test_unknown_flags_are_refused(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--lr", "0.1", "--nonsense"])
    assert caught.value.code == 2 and "--nonsense" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([])
    assert not list(empty.iterdir())


def test_an_interrupt_is_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tuner.theory.__main__.predict", interrupted)
    assert main(QUICK) == 130 and capsys.readouterr() == ("", "")


@pytest.mark.slow
def test_the_command_itself(empty: Path) -> None:
    flags = ["--lr", "0.4", "--dimension", "40", "--runs", "2"]
    ran = subprocess.run([sys.executable, "-m", "tuner.theory", *flags], capture_output=True, text=True, check=False)
    assert ran.returncode == 0 and ran.stderr == ""
    assert math.isclose(number(said(ran.stdout)["critical learning rate"]), 4 / 3, rel_tol=1e-3)
    assert ran.stdout.splitlines()[-1] == "theory: risk.png, plateau.png"
    wrong = subprocess.run(
        [sys.executable, "-m", "tuner.theory", "--lr", "0"], capture_output=True, text=True, check=False
    )
    assert (wrong.returncode, wrong.stdout) == (2, "") and wrong.stderr.count("\n") == 1
