"""From nothing to a search that uses both workers and a browsed MLflow, by the commands of docs/cluster.md."""

from __future__ import annotations

import json

import pytest

from tests.cluster.browser import CHROMIUM, page_text
from tests.cluster.cluster import MLFLOW, STORAGE, Cluster
from tests.cluster.hosts import HOME
from tests.command import TINY

pytestmark = pytest.mark.cluster

SEARCH = (
    f"python -m tuner.search --address auto --storage '{STORAGE}' --tracking-uri {MLFLOW} "
    "--checkpoints /srv/checkpoints"
)
LIST = "ray list {} --format json"
EXPERIMENT = f"{MLFLOW}/#/experiments/1/runs"


@pytest.fixture(scope="module")
def searched(cluster: Cluster) -> Cluster:
    """The cluster after a search of four trials."""
    small = "--variants sgdm adamw --epochs 2 --confirm-seeds 1 --no-early-stopping " + " ".join(TINY)
    cluster.on_head(f"{SEARCH} --name first {small}")
    return cluster


def answer(cluster: Cluster, query: str) -> str:
    """Of Optuna's database."""
    return cluster.on_head(f'psql -d optuna -tAc "{query}"').stdout.strip()


def test_the_search_used_both_workers_and_not_the_head(searched: Cluster) -> None:
    addresses = {node["node_id"]: node["node_ip"] for node in json.loads(searched.on_head(LIST.format("nodes")).stdout)}
    actors = json.loads(searched.on_head(LIST.format("actors")).stdout)
    used = {addresses[actor["node_id"]] for actor in actors if actor["class_name"] == "TrialActor" and actor["node_id"]}
    assert used == {worker.address for worker in searched.hosts.workers}


def test_it_is_kept_where_the_file_says(searched: Cluster) -> None:
    assert answer(searched, "SELECT state, count(*) FROM trials GROUP BY state") == "COMPLETE|4"
    assert (searched.hosts.head.path(HOME) / "runs/first/report.html").stat().st_size > 10_000
    assert list((searched.hosts.shared / "checkpoints").iterdir())
    assert list((searched.hosts.shared / "mlflow").rglob("report.html")), "MLflow's artifacts are not in the storage"


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_mlflow_through_the_tunnel_in_a_browser(searched: Cluster) -> None:
    with searched.tunnel(5000):
        shown = page_text(searched.hosts.laptop, EXPERIMENT, "admin", searched.password(), until="\nfirst\n")
        assert "first" in shown.splitlines()
        shown = page_text(searched.hosts.laptop, EXPERIMENT, "admin", "password1234", until="not authenticated")
        assert "You are not authenticated" in shown


def test_a_job_through_the_tunnel_with_the_token(cluster: Cluster) -> None:
    small = "--variants sgdm --trials 1 --round-size 1 --epochs 1 --confirm-seeds 0"
    submit = f"ray job submit --address http://127.0.0.1:8265 -- {SEARCH} --name job --output {HOME}/runs {small}"
    with cluster.tunnel(8265):
        refused = cluster.laptop("bash", "-c", submit, check=False)
        assert refused.returncode != 0 and "authentication" in (refused.stdout + refused.stderr).lower()
        cluster.fetch(".ray/auth_token")
        cluster.laptop("bash", "-c", f"export RAY_AUTH_MODE=token; {submit}")
    assert cluster.hosts.head.path(f"{HOME}/runs/job/report.html").exists()


@pytest.mark.extensive
def test_a_second_ray_up_keeps_everything(searched: Cluster) -> None:
    def kept() -> tuple[str, ...]:
        secrets = searched.on_head("cat ~/.ray/auth_token ~/.mlflow/credentials").stdout
        runs = searched.on_head("psql -d mlflow -tAc 'SELECT run_uuid, status FROM runs ORDER BY 1'").stdout
        return secrets, runs, answer(searched, "SELECT trial_id, state FROM trials ORDER BY 1")

    before = kept()
    searched.ray_up()
    assert kept() == before
    login = f"http://admin:{searched.password()}@127.0.0.1:5000"
    assert (
        "experiment_id" in searched.on_head(f"curl -sf {login}/api/2.0/mlflow/experiments/get?experiment_id=1").stdout
    )
