"""Spot first, on-demand while there is no spot: asked of Ray's own scheduler, with the node types of cluster.yaml."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.node_provider_availability_tracker import (
    NodeAvailabilitySummary,
    NodeProviderAvailabilityTracker,
)
from ray.autoscaler._private.resource_demand_scheduler import get_nodes_for
from ray.autoscaler.node_launch_exception import NodeLaunchException

from tuner.cluster.autoscaling import prefer_available

CONFIG: dict[str, Any] = yaml.safe_load((Path(__file__).resolve().parents[2] / "cluster.yaml").read_text())
NOTHING_KNOWN = NodeAvailabilitySummary(node_availabilities={})
TRIAL: dict[str, Any] = {"CPU": 1.0, "GPU": 1.0}


def launched(num_trials: int, summary: NodeAvailabilitySummary) -> dict[str, int]:
    """Workers of each type that Ray starts for trials that wait."""
    added, _ = get_nodes_for(
        CONFIG["available_node_types"],
        {CONFIG["head_node_type"]: 1},
        CONFIG["head_node_type"],
        CONFIG["max_workers"],
        [TRIAL] * num_trials,
        partial(prefer_available, node_availability_summary=summary),
    )
    return dict(added)


def after(*failures: bool) -> NodeAvailabilitySummary:
    """What Ray knows after launches of spot workers, in their order."""
    tracker = NodeProviderAvailabilityTracker(timer=lambda: 100.0)
    for when, failed in enumerate(failures):
        error = NodeLaunchException("InsufficientInstanceCapacity", "none left", None) if failed else None
        tracker.update_node_availability("worker-spot", 90 + when, error)
    return tracker.summary()


@pytest.mark.parametrize("summary", [NOTHING_KNOWN, after(False), after(True, False)])
def test_spot_comes_first(summary: NodeAvailabilitySummary) -> None:
    assert launched(3, summary) == {"worker-spot": 3}


def test_on_demand_steps_in_where_spot_is_refused_and_no_further_than_its_limit() -> None:
    assert launched(1, after(True)) == {"worker-on-demand": 1}
    most = CONFIG["available_node_types"]["worker-on-demand"]["max_workers"]
    # Ray goes on asking for spot workers for the rest.
    assert launched(5, after(True)) == {"worker-on-demand": most, "worker-spot": 5 - most}


def test_all_types_together_stay_within_the_cluster() -> None:
    for summary in (NOTHING_KNOWN, after(True)):
        assert sum(launched(50, summary).values()) == CONFIG["max_workers"]


def test_a_failure_is_forgotten_in_time() -> None:
    now = 0.0
    tracker = NodeProviderAvailabilityTracker(timer=lambda: now, ttl=60)
    tracker.update_node_availability("worker-spot", 0, NodeLaunchException("Capacity", "none left", None))
    assert launched(1, tracker.summary()) == {"worker-on-demand": 1}
    now = 61.0
    assert launched(1, tracker.summary()) == {"worker-spot": 1}


def test_the_head_is_never_the_answer() -> None:
    head = CONFIG["available_node_types"][CONFIG["head_node_type"]]["resources"]
    for demand in ({"CPU": 1.0}, TRIAL):
        assert prefer_available(head, [demand], "head", node_availability_summary=NOTHING_KNOWN) is None
