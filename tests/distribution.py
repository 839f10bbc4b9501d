"""Which tests share a process where several run side by side: those of a file, whose fixtures are dear to make."""

from __future__ import annotations

from typing import Any

import pytest

APART = (
    "tests/search/test_outages.py::",
    "tests/search/test_resume.py::",
    "tests/search/test_search.py::test_a_failing_trial",
    "tests/search/test_search.py::test_a_program",
    "tests/search/test_search.py::test_all_diverged",
    "tests/search/test_search.py::test_other_objectives",
    "tests/search/test_search.py::test_python_interface",
    "tests/cluster/test_worker_group.py::test_a_search",
)
"""Beginnings of the names of tests that share nothing, and take long."""
TOGETHER = {
    "tests/diagnose/test_diagnose.py": "tests/search/test_search.py",
    "tests/tracking/test_mlflow_ui.py": "tests/search/test_search.py",
    "tests/cluster/test_ports.py": "hosts",
    "tests/cluster/test_ray_up.py": "hosts",
    "tests/cluster/test_survival.py": "hosts",
    "tests/cluster/test_tear_down.py": "hosts",
}
"""Files that share a search, or a cluster."""


def process_of(nodeid: str) -> str:
    """Tests of equal answers run in one process."""
    file = nodeid.partition("::")[0]
    return nodeid if nodeid.startswith(APART) else TOGETHER.get(file, file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hands out whole processes' tests, in the order of collection."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return process_of(nodeid)

    return Scheduling(config, log)
