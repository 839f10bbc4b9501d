"""Finds everything that can be wrong with a search, before anything of it exists."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from search_spaces import Variant
from tuner.cluster.ray_cluster import check_local_cpus
from tuner.core.database import check_database
from tuner.core.errors import InvalidInput, unknown
from tuner.core.search_spec import DEFAULT_TRACKING_URI, SearchSpec
from tuner.core.store import check_folder, check_place
from tuner.core.variants import resolve_variants
from tuner.tracking.client import check_tracking_uri
from tuner.workloads.check import Prepared, check_workload, prepare


def check(spec: SearchSpec, *, download: bool = True) -> tuple[tuple[Variant, ...], Prepared]:
    """The search's variants, and what is known about its data; ``download`` permits ``--download`` to fetch it.

    Raises InvalidInput with one sentence for the first thing that is wrong.
    """
    workload = replace(spec.workload_spec(), download=download and spec.training.workload.download)
    try:
        variants = resolve_variants(spec.variants, spec.space)
        if spec.baseline is not None and spec.baseline not in (names := [variant.name for variant in variants]):
            raise unknown("variant in --baseline", spec.baseline, names)
        check_workload(workload)
        check_local_cpus(spec)
        check_folder("--output", Path(spec.output))
        if spec.checkpoints is not None and not spec.dry_run:
            check_place("--checkpoints", spec.checkpoints)
        if spec.storage is not None:
            check_database("--storage", spec.storage)
        check_tracking_uri(spec.tracking_uri or DEFAULT_TRACKING_URI)
        return variants, prepare(workload)
    except InvalidInput as error:
        raise InvalidInput(_with_flag(str(error))) from None


def _with_flag(message: str) -> str:
    """The message with its flag in front, if it names only the variant, the data or the model."""
    flags = {"unknown variant '": "--variants", "unknown data '": "--workload", "unknown model '": "--model"}
    return next((f"{flag}: {message}" for start, flag in flags.items() if message.startswith(start)), message)
