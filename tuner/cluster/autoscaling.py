"""Ranks the types of worker that Ray's autoscaler may start next (``RAY_AUTOSCALER_UTILIZATION_SCORER``).

Ray's own scorer asks for the type that suits the waiting trials best, even after the cloud had no such machine.  This
scorer ranks a type whose last launch failed behind the other types.  Ray forgets a failure after half an hour.  Between
types that suit equally well Ray takes the last by name: ``worker-spot`` before ``worker-on-demand``.  Source: ours.
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
    """A node type's rank for the resources that trials wait for; the largest rank is started first.

    Returns None if the type can run none of the waiting trials.
    """
    score = _default_utilization_scorer(
        node_resources, resources, node_type, node_availability_summary=node_availability_summary
    )
    if score is None:
        return None
    last_launch = node_availability_summary.node_availabilities.get(node_type)
    return (last_launch is None or last_launch.is_available, *score)
