"""Finds everything that can be wrong with a search, before anything of it exists."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from search_spaces import Variant
from tuner.cluster.ray_cluster import check_local_cpus
from tuner.core.database import check_database
from tuner.core.errors import InvalidInput, unknown
from tuner.core.search_spec import DEFAULT_TRACKING_URI, SearchSpec
from tuner.core.separate_process import answer, ask
from tuner.core.serialization import with_settings
from tuner.core.store import check_folder, check_place
from tuner.core.trial_spec import OptimizerSpec, TrialSpec
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
        _require_one_worker(spec, variants)
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
        prepared = prepare(workload)
        _try_optimizers(spec, variants)
        return variants, prepared
    except InvalidInput as error:
        raise InvalidInput(_with_flag(str(error))) from None


def _try_optimizers(spec: SearchSpec, variants: Sequence[Variant]) -> None:
    """Takes two steps of each variant's default point that has code of the user's own; raises what is wrong."""
    lines = [
        json.dumps([variant.name, asdict(training), spec.resume_check or _replays(training)])
        for variant in variants
        if (
            training := spec.trial_spec(with_settings(OptimizerSpec(), variant.default_settings()), 0)
        ).optimizer.is_tried_first
    ]
    if not lines:
        return
    with ask("tuner.train.tryout:try_all", *lines) as process:
        answer(process, "the variants")


def _replays(training: TrialSpec) -> bool:
    """Whether a training loads earlier states of its optimizer, resumed or not."""
    return training.optimizer.order.composition == "backward"


def _require_one_worker(spec: SearchSpec, variants: Sequence[Variant]) -> None:
    for variant in variants:
        if spec.workers_per_trial > 1 and variant.default_settings().get("create_graph"):
            raise InvalidInput(
                f"--workers-per-trial {spec.workers_per_trial}: must be 1 for {variant.name}, because create_graph "
                "has no graph over several processes"
            )


def _with_flag(message: str) -> str:
    """The message with its flag in front, if it names only the variant, the data or the model."""
    flags = {"unknown variant '": "--variants", "unknown data '": "--workload", "unknown model '": "--model"}
    return next((f"{flag}: {message}" for start, flag in flags.items() if message.startswith(start)), message)
