"""The package as ``pip install .`` installs it: without the ``dev`` extra, away from the repository."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.test_repository import ROOT, tracked_files

COMMANDS = ("search", "report", "train", "diagnose", "theory")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
DISTRIBUTIONS: dict[str, metadata.Distribution] = {
    canonicalize_name(distribution.name): distribution
    for distribution in metadata.distributions(path=[sysconfig.get_path("purelib")])
}
"""Name -> distribution, for everything installed in the environment that runs the tests."""


def required_by(distribution: metadata.Distribution) -> set[str]:
    """Names of the distributions that pip installs with this one, if no extra is asked for."""
    visited: set[tuple[str, str]] = set()
    pending = [(distribution, "")]
    while pending:
        dependent, extra = pending.pop()
        for requirement in map(Requirement, dependent.requires or ()):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                name: str = canonicalize_name(requirement.name)
                assert name in DISTRIBUTIONS, f"{dependent.name} requires {requirement}, which is not installed"
                for key in {(name, wanted) for wanted in ("", *requirement.extras)} - visited:
                    visited.add(key)
                    pending.append((DISTRIBUTIONS[name], key[1]))
    return {name for name, _ in visited}


def paths_of(names: set[str]) -> set[str]:
    """The files of these distributions and all folders above them, relative to site-packages."""
    paths: set[str] = set()
    for name in names:
        for file in DISTRIBUTIONS[name].files or ():
            path = str(file)
            # Console scripts and data files lie outside site-packages.
            while path and path not in paths and not path.startswith(".."):
                paths.add(path)
                path = os.path.dirname(path)
    return paths


def link(source: Path, target: Path, wanted: set[str], unwanted: set[str], folder: str = "") -> None:
    """Links the wanted files of ``source / folder`` into ``target``; a folder without unwanted files is one link."""
    for entry in os.scandir(source / folder):
        path = os.path.join(folder, entry.name)
        if path in wanted and path in unwanted and entry.is_dir():
            (target / path).mkdir()
            link(source, target, wanted, unwanted, path)
        elif path in wanted:
            (target / path).symlink_to(entry.path)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel of this repository and links to the distributions that it requires."""
    folder = tmp_path_factory.mktemp("wheel")
    for path in tracked_files():
        copy = folder / "repository" / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, copy)
    build = [*PIP, "wheel", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    subprocess.run([*build, str(folder / "repository")], cwd=folder, env=without_python(), check=True)
    (wheel,) = folder.glob("*.whl")

    made = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(made)], check=True)
    install = [*PIP, "--python", str(made / "bin" / "python"), "install", "--no-index", "--no-deps", str(wheel)]
    subprocess.run(install, cwd=folder, env=without_python(), check=True)

    (site_packages,) = made.glob("lib/python*/site-packages")
    (installed,) = metadata.distributions(path=[str(site_packages)])
    required = required_by(installed)
    others = DISTRIBUTIONS.keys() - required
    assert {"pytest", "mypy"} <= others
    source = Path(sysconfig.get_path("purelib"))
    link(source, site_packages, paths_of(required), paths_of(others))
    return made


def without_python() -> dict[str, str]:
    """The environment variables without those by which Python finds this repository."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}


def run(environment: Path, program: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs a program of the environment, which finds no Python package outside it."""
    variables = without_python()
    variables["PATH"] = f"{environment / 'bin'}:{os.defpath}"
    command = [str(environment / "bin" / program), *arguments]
    return subprocess.run(
        command,
        cwd=cwd,
        env=variables,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def test_the_environment_has_the_required_distributions_only(environment: Path, tmp_path: Path) -> None:
    program = (
        "import importlib.metadata, importlib.util, json, search_spaces, tuner\n"
        "names = sorted({distribution.name for distribution in importlib.metadata.distributions()})\n"
        "found = [name for name in ('tests', 'benchmarks', 'pytest', 'moto') if importlib.util.find_spec(name)]\n"
        "print(json.dumps([names, found, tuner.__file__, search_spaces.__file__]))\n"
    )
    ran = run(environment, "python", "-c", program, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    names, found, *homes = json.loads(ran.stdout)
    (site_packages,) = environment.glob("lib/python*/site-packages")
    (installed,) = metadata.distributions(name="sgd-tuner", path=[str(site_packages)])
    assert {canonicalize_name(name) for name in names} == required_by(installed) | {"sgd-tuner"}
    assert not found
    assert all(Path(home).is_relative_to(environment) for home in homes)


@pytest.mark.slow
def test_every_module_imports(environment: Path, tmp_path: Path) -> None:
    program = (
        "import importlib, pkgutil, search_spaces, tuner\n"
        "for package in (tuner, search_spaces):\n"
        "    for module in pkgutil.walk_packages(package.__path__, f'{package.__name__}.'):\n"
        "        importlib.import_module(module.name)\n"
    )
    ran = run(environment, "python", "-c", program, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.slow
def test_a_search_needs_no_other_distribution(environment: Path, tmp_path: Path) -> None:
    small = ["--trials", "1", "--round-size", "1", "--epochs", "1", "--confirm-seeds", "0", "--variants", "sgdm"]
    ran = run(environment, "sgd-tuner", "search", *small, cwd=tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert len(list(tmp_path.glob("runs/*/report.html"))) == 1


@pytest.mark.parametrize("arguments", [(), ("serch",), ("--serch",)], ids=["none", "unknown", "flag"])
def test_without_a_known_command_one_line_names_all(
    environment: Path, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    ran = run(environment, "sgd-tuner", *arguments, cwd=tmp_path)
    assert ran.returncode == 2
    assert not ran.stdout
    (line,) = ran.stderr.splitlines()
    assert all(command in line for command in COMMANDS)


def test_help_names_all_commands(environment: Path, tmp_path: Path) -> None:
    ran = run(environment, "sgd-tuner", "--help", cwd=tmp_path)
    assert ran.returncode == 0
    assert all(command in ran.stdout for command in COMMANDS)
    assert not ran.stderr
