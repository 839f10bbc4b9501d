"""What a worker does with an task, in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tuner.cluster.trial_actor import TrialTask, work
from tuner.core.serialization import to_json
from tuner.core.trial_spec import TrialSpec


def worked(root: Path, spec: TrialSpec, phase: str, *, gpu_share: float = 1.0) -> list[dict[str, Any]]:
    """What it tells of a training whose store is ``root / "a"``."""
    task = TrialTask(
        trial="a",
        phase=phase,
        spec=to_json(spec),
        root=str(root),
        folder="a",
        checkpoint_seconds=None,
        workers=1,
        threads=1,
        gpu_share=gpu_share,
    )
    return list(work(task))
