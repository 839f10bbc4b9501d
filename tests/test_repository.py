"""The files as a whole: what the README, the pins and the house rules say of them."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.command import environment

ROOT = Path(__file__).resolve().parent.parent
MADE_BY_TOOLS = {".git", ".venv", "__pycache__", "build", "dist", "runs", "mlruns"}
# For git alone; a reader of the tree misses nothing.
UNNAMED = {".gitignore", ".gitattributes"}


def tracked_files() -> list[Path]:
    """Files of the repository relative to its root: git's, or where this is no clone all but what tools make."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        answer = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
        files = [Path(name) for name in answer.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        found = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file())
        files = [path for path in found if not any(_made_by_tools(part) for part in path.parts)]
    return sorted(path for path in files if (ROOT / path).is_file())


def _made_by_tools(part: str) -> bool:
    return part in MADE_BY_TOOLS or part.endswith(("_cache", ".egg-info")) or part.startswith("mlflow.db")


FILES = tracked_files()
MODULES = [path for path in FILES if path.suffix == ".py" and path.parts[0] in ("tuner", "search_spaces")]


def texts() -> Iterator[tuple[Path, str]]:
    for path in FILES:
        try:
            yield path, (ROOT / path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


def tree() -> dict[str, str]:
    """Path -> remark, from the code block under the README's heading "Tree"."""
    block = re.search(r"^## Tree$.*?^```\w*\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert block, "README.md has no code block under a heading '## Tree'"
    named: dict[str, str] = {}
    for line in block.group(1).splitlines():
        if line.strip():
            path, _, remark = line.strip().partition(" ")
            assert path not in named, f"{path} stands twice in the README's tree"
            named[path.rstrip("/")] = remark.strip()
    return named


def pins() -> dict[str, str]:
    lines = [line.strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = [text for group in project["optional-dependencies"].values() for text in group]
    return [Requirement(text) for text in project["dependencies"] + optional]


def test_the_tree_in_the_readme_names_files_that_exist_and_says_what_they_are() -> None:
    for path, remark in tree().items():
        assert (ROOT / path).exists(), f"README.md names {path}, which is not there"
        assert remark, f"README.md says nothing about {path}"


def test_the_tree_in_the_readme_is_whole() -> None:
    entries = {path.parts[0] for path in FILES} - UNNAMED
    modules = {str(path) for path in MODULES if path.parts[0] == "tuner" and len(path.parts) == 2}
    packages = {str(path.parent) for path in MODULES if path.parts[0] == "tuner" and len(path.parts) == 3}
    missing = (entries | modules | packages) - set(tree())
    # A folder whose contents are named one by one has been named.
    missing = {path for path in missing if not any(named.startswith(f"{path}/") for named in tree())}
    assert not missing, f"README.md's tree lacks {', '.join(sorted(missing))}"


@pytest.mark.parametrize("requirement", requirements(), ids=lambda requirement: requirement.name)
def test_every_dependency_is_pinned_within_its_bounds(requirement: Requirement) -> None:
    version = pins().get(canonicalize_name(requirement.name))
    assert version, f"constraints.txt lacks {requirement.name}"
    assert requirement.specifier.contains(version), f"{requirement} forbids the pinned {version}"


def test_pins_are_names_and_versions_only() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    for line in lines:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line), line
    assert not [line for line in lines if re.match(r"nvidia-(?!ml-py)", line)], "torch pins its own CUDA libraries"
    assert len(pins()) == len(lines)


def test_no_file_knows_where_packages_come_from_or_where_it_was_written() -> None:
    # In parts, as this file is read too.
    hosts = ["py" + "pi.org", "python" + "hosted.org"]
    folders = re.compile(r"(?<![\w.~}/-])/(?:" + "work|root" + r")/")
    for path, text in texts():
        for host in hosts:
            assert host not in text, f"{path} names a package registry"
        found = folders.search(text)
        assert not found, f"{path} names a folder of one machine: {text[found.start() :].split()[0] if found else ''}"


def test_notebooks_are_stripped_of_outputs() -> None:
    for path in FILES:
        if path.suffix == ".ipynb":
            for cell in json.loads((ROOT / path).read_text())["cells"]:
                assert not cell.get("outputs"), f"{path} has outputs: make format"
                assert cell.get("execution_count") is None, f"{path} has execution counts: make format"


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_modules_say_what_they_are(path: Path) -> None:
    assert ast.get_docstring(ast.parse((ROOT / path).read_text())), f"{path} has no docstring"


def test_tests_stand_in_the_rooms_that_they_test() -> None:
    rooms = {path.parts[1] for path in MODULES if path.parts[0] == "tuner" and len(path.parts) == 3}
    folders = {path.parts[1] for path in FILES if path.parts[0] == "tests" and len(path.parts) > 2}
    assert folders <= rooms | {"search_spaces", "benchmarks"}


LEAVING = """
from pathlib import Path
def test_here(): Path("mlflow.db").touch()
def test_there(request): (request.config.invocation_params.dir / "runs/b").mkdir()
def test_nothing(): assert not list(Path().iterdir())
"""


def test_tests_that_leave_something_behind_are_found_out(tmp_path: Path) -> None:
    started = tmp_path / "started"
    (started / "runs/a").mkdir(parents=True)
    (started / "test_leaving.py").write_text(LEAVING)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.tidy", "--basetemp", str(tmp_path / "temporary")]
    ran = subprocess.run(
        command, cwd=started, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert "3 passed, 2 errors" in ran.stdout, ran.stdout + ran.stderr
    assert "['mlflow.db']" in ran.stdout and "runs/b" in ran.stdout
    assert "ERROR test_leaving.py::test_here" in ran.stdout and "ERROR test_leaving.py::test_nothing" in ran.stdout
