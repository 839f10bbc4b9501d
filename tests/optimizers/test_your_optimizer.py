"""The page docs/your-optimizer.md: what it says to type is typed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch

from tests.command import ROOT, check_whole, search
from tuner.core.serialization import with_settings
from tuner.core.trial_spec import OptimizerSpec, TrialSpec
from tuner.core.variants import resolve_variants
from tuner.study.results import load_search
from tuner.train.tryout import try_out

pytestmark = pytest.mark.usefixtures("one_thread")
PAGE = (ROOT / "docs/your-optimizer.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.S)
SPACES = [shlex.split(line)[1] for line in PAGE.splitlines() if line.startswith("    --space ")]
COMMAND = shlex.split(next(line for line in PAGE.splitlines() if line.startswith("    python -m tuner.search")))


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a module that holds all of the page's code; each test has its own, as modules are imported once."""
    module = f"mine_{abs(hash(tmp_path))}"
    (tmp_path / f"{module}.py").write_text("\n\n".join(BLOCKS))
    monkeypatch.syspath_prepend(tmp_path)
    return module


def test_the_page_has_ten_lines_to_begin_with() -> None:
    lines = [line for line in BLOCKS[0].splitlines() if line and not line.startswith("#")]
    assert len(lines) <= 10 and COMMAND[-1] == "mine:SignSGD"


def test_every_range_of_the_page_is_understood(typed: str) -> None:
    signed, nadam = resolve_variants([f"signsgd={typed}:SignSGD", "torch.optim:NAdam"], SPACES)
    assert set(signed.searched) == {"lr.peak"}
    assert set(nadam.searched) == {"lr.peak", "lr.schedule", "arguments.weight_decay", "arguments.betas"}
    assert nadam.fixed["momentum.schedule"] == "critical" and nadam.fixed["arguments.decoupled_weight_decay"] is True


@pytest.mark.parametrize("name", ["SignSGD", "split", "TUNED"])
def test_what_the_page_makes_trains_and_resumes(typed: str, name: str) -> None:
    (variant,) = resolve_variants([f"{typed}:{name}"], [])
    try_out(TrialSpec(optimizer=with_settings(OptimizerSpec(), variant.default_settings())))
    assert torch.get_num_threads() == 1


@pytest.mark.slow
def test_the_ten_lines_are_judged_in_the_first_line(tmp_path: Path) -> None:
    """The page's command, made small: three rounds, which cannot decide, and the answer says so of this variant."""
    (tmp_path / "mine.py").write_text(BLOCKS[0])
    small = ["--name", "a", "--epochs", "2", "--targets", ".3", ".5", "--trials", "3", "--round-size", "1"]
    ran = search(tmp_path, *COMMAND[3:], *small, "--refine-trials", "1", "--confirm-seeds", "1")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = load_search("a", output=str(tmp_path / "runs"))
    assert [variant.name for variant in found.variants] == ["sgdm", "signsgd"]
    answer = (tmp_path / "runs/a/report.md").read_text().split("\n\n")[1:4]
    assert any("signsgd" in sentence for sentence in answer), answer
    trials = {name: len(found.trials_of(name)) for name in ("sgdm", "signsgd")}
    check_whole(tmp_path, trials)
