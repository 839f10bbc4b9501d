"""Every notebook runs from its first cell to its last and draws; those of a search leave it as it was."""

from __future__ import annotations

import os
import re
from pathlib import Path

import nbclient
import nbformat
import pytest
from nbformat import NotebookNode

from benchmarks.simulated_search import Truth, simulate
from tests.command import search
from tests.waiting import HANG_SECONDS
from tuner.core.search_spec import SearchSpec
from tuner.study.refinement import most_repeats

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
VARIANTS = ("sgdm", "lpsgdm", "lpsgdm-fixed", "critical", "hybrid", "critical-matched", "backward", "backward-forward")
SHOWN = {
    "01-first-search": (2, [f"small: 24 trials of {', '.join(VARIANTS)}", "24 confirmed runs", "lpsgdm-0"]),
    "02-p-schedules": (3, ["small: 6 trials of lpsgdm, lpsgdm-fixed", "control lpsgdm-fixed"]),
    "03-momentum": (
        4,
        ["small: 12 trials of sgdm, critical, hybrid, critical-matched", "control critical-matched"],
    ),
    "04-forward-and-backward": (3, ["small: 2 confirmed runs of backward, 2", "control backward-forward"]),
    "05-layers": (2, ["small: ", "Groups that two networks share, of 1", "No repair yet: python -m"]),
}
"""Notebook -> how many pictures it has at least, and what is in what it prints."""
OF_NO_SEARCH = {
    "06-theory": (
        6,
        [
            "20 types of coordinates, first risk 0.4375, critical rate 1.333",
            "SDE, independent noise: median gap",
            "d = 600: at 1.05 and 1.2 times gamma_c",
            "64 of 64 at d = 640",
            "lpsgd                 the direction of lpsgd is not the gradient's",
        ],
    )
}
"""Likewise of those that compute all they show."""
SMALLER = {
    "num_runs=(?:64|32|16)": "num_runs=2",
    r"\b1600\b": "160",
    r"\b800\b": "80",
    r"\b640\b": "64",
    r"\b600\b": "60",
    r"\b400\b": "44",
    r"\b320\b": "32",
}
"""What makes these quick: fewer runs, and networks of a tenth of the dimension."""
QUICK = {"07-your-optimizer": (1, ["signsgd", "torch.optim:NAdam", "arguments.weight_decay"])}
"""Those that compute all they show, in seconds."""
NOTEBOOKS = [path for path in sorted(FOLDER.glob("*.ipynb")) if path.stem not in {*OF_NO_SEARCH, *QUICK}]
LONG = {
    "02-p-schedules": (
        3,
        [
            f"small: {2 * (24 + 12 + most_repeats(24, 12))} trials",
            "lacks controls of lpsgdm",
            "matter more than chance",
        ],
    )
}
"""Of a longer search without confirmation."""


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a search of a small model by all that the notebooks are about; easy targets, reached by some."""
    folder = tmp_path_factory.mktemp("notebooks")
    (folder / "mine.py").write_text(
        "import torch\n"
        "def model(*, num_classes, channels, image_size):\n"
        "    first, second = torch.nn.Linear(channels * image_size ** 2, 32), torch.nn.Linear(32, num_classes)\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), first, torch.nn.ReLU(), second)\n"
    )
    ran = search(
        folder, "--name", "small", "--variants", *VARIANTS, "--model", "mine:model", "--epochs", "3",
        "--trials", "3", "--round-size", "1", "--refine-trials", "0", "--targets", ".3", ".7", "--confirm-seeds", "2",
        "--space", "backward:order.start=0.0", "backward:order.interval=1",  # so that there are replays
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return folder / "runs" / "small"


def read(path: Path) -> NotebookNode:
    notebook: NotebookNode = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    return notebook


def smaller(notebook: NotebookNode) -> NotebookNode:
    """The same notebook of quicker simulations."""
    for pattern, text in SMALLER.items():
        sources = [re.sub(pattern, text, cell.source) for cell in notebook.cells]
        assert sources != [cell.source for cell in notebook.cells], f"{pattern} makes nothing smaller"
        for cell, source in zip(notebook.cells, sources, strict=True):
            cell.source = source
    return notebook


def run(*notebooks: tuple[Path, Path | None], whole_size: bool = True, **environment: str) -> dict[str, NotebookNode]:
    """Notebooks after a run from first cell to last, in one kernel emptied before each: what they import takes seconds.

    Each has the search's folder that it is about beside it.
    """
    whole = nbformat.v4.new_notebook()  # type: ignore[no-untyped-call]
    parts: dict[str, NotebookNode] = {}
    for path, searched in notebooks:
        parts[path.stem] = read(path) if searched or whole_size else smaller(read(path))
        opening = f"%reset -f\nimport os\nos.environ['TUNER_SEARCH'] = {str(searched or '')!r}"
        # The cells of both are the same objects, and get their outputs here.
        whole.cells += [nbformat.v4.new_code_cell(opening), *parts[path.stem].cells]  # type: ignore[no-untyped-call]
    client = nbclient.NotebookClient(
        whole, timeout=HANG_SECONDS, allow_errors=True, resources={"metadata": {"path": str(FOLDER)}}
    )
    client.execute(env={**os.environ, **environment})
    return parts


def check(notebook: NotebookNode, num_pictures: int, printed: list[str]) -> None:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output["traceback"] for output in outputs if output["output_type"] == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= num_pictures
    text = "".join(output["text"] for output in outputs if output.get("name") == "stdout")
    for words in printed:
        assert words in text
    warned = [output["text"] for output in outputs if output.get("name") == "stderr"]
    assert not [text for text in warned if "TqdmWarning" not in text], "ours; tqdm misses its widgets"


def files(folder: Path) -> dict[Path, int]:
    """File -> when it was last changed; the database apart, into which the first to read it puts SQLite's log."""
    found = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("optuna.db"))
    return {path: path.stat().st_mtime_ns for path in found}


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory, quick_sqlite: None) -> Path:
    """The folder of a search of more trials without confirmation."""
    spec = SearchSpec.from_flags(
        name="small",
        variants=("sgdm", "lpsgdm", "lpsgdm-rms"),
        trials=24,
        alpha=0.0,
        refine_trials=12,
        confirm_seeds=0,
        epochs=4,
        early_stopping=False,
    )
    truths = {"sgdm": Truth(), "lpsgdm": Truth(lr_limit=0.1), "lpsgdm-rms": Truth()}
    return simulate(spec, truths, output=tmp_path_factory.mktemp("long")).folder


@pytest.fixture(scope="module")
def ran(searched: Path) -> dict[str, NotebookNode]:
    """The notebooks on a search, which they leave as it was."""
    before = files(searched)
    path = [str(searched.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]  # the model
    given = [(notebook, searched) for notebook in NOTEBOOKS]
    made = run(*given, whole_size=False, PYTHONPATH=os.pathsep.join(path))
    assert files(searched) == before
    return made


@pytest.mark.slow
@pytest.mark.extensive
@pytest.mark.parametrize("name", [path.stem for path in NOTEBOOKS])
def test_notebook(name: str, ran: dict[str, NotebookNode]) -> None:
    check(ran[name], *SHOWN[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_quick_notebook(name: str) -> None:
    check(run((FOLDER / f"{name}.ipynb", None))[name], *QUICK[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_NO_SEARCH)
def test_notebook_of_no_search_made_smaller(name: str) -> None:
    pictures, printed = OF_NO_SEARCH[name]
    made = run((FOLDER / f"{name}.ipynb", None), whole_size=False)[name]
    check(made, pictures, [words for words in printed if "d = 6" not in words])


@pytest.mark.slow
@pytest.mark.extensive
@pytest.mark.parametrize("name", OF_NO_SEARCH)
def test_notebook_of_no_search(name: str) -> None:
    check(run((FOLDER / f"{name}.ipynb", None))[name], *OF_NO_SEARCH[name])


@pytest.mark.extensive
@pytest.mark.parametrize("name", LONG)
def test_notebook_of_a_long_search_without_confirmation(name: str, long: Path) -> None:
    check(run((FOLDER / f"{name}.ipynb", long))[name], *LONG[name])


@pytest.mark.parametrize("path", NOTEBOOKS[1:], ids=lambda path: path.stem)
def test_notebook_says_what_to_search_where_its_variants_are_missing(
    path: Path, tmp_path: Path, quick_sqlite: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = simulate(
        SearchSpec(name="plain", variants=("sgdm",), trials=1, round_size=1), {"sgdm": Truth()}, output=tmp_path
    )
    monkeypatch.setenv("TUNER_SEARCH", str(made.folder))
    opening = next(cell.source for cell in read(path).cells if cell.cell_type == "code")
    with pytest.raises(SystemExit, match=r"plain has .*: python -m tuner\.search --variants .*"):
        exec(opening, {})
