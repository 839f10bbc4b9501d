"""Which type of worker a cluster starts next, for Ray's autoscaler (``RAY_AUTOSCALER_UTILIZATION_SCORER``).

Ray asks for the type that suits the waiting trials best, and asks for it again when the cloud has none to give.  Here a
type whose last launch failed stands behind those that can be had, until Ray forgets the failure (after half an hour).
Between types that suit equally well Ray takes the last by name: ``worker-spot`` before ``worker-on-demand``.  Ours.
"""

from __future__ import annotations

from typing import Any

from ray.autoscaler._private.node_provider_availability_tracker import NodeAvailabilitySummary
from ray.autoscaler._private.resource_demand_scheduler import _default_utilization_scorer


def prefer_available(
    node_resources: dict[str, Any],
    resources: list[dict[str, Any]],
    node_type: str,
    *,
    node_availability_summary: NodeAvailabilitySummary,
) -> Any:
    """Rank of a node type for the resources that trials wait for, largest first; None where it can run none of them."""
    score = _default_utilization_scorer(
        node_resources, resources, node_type, node_availability_summary=node_availability_summary
    )
    if score is None:
        return None
    last_launch = node_availability_summary.node_availabilities.get(node_type)
    return (last_launch is None or last_launch.is_available, *score)
