"""Several trainings on one GPU: each is kept to its share of the memory, and told which share would fit it.

``--gpus-per-trial`` s gives a training the part s of a GPU's memory, less what CUDA itself takes for each process.
Ours.
"""

from __future__ import annotations

import math

import torch

from tuner.core.trial_spec import TrialSpec
from tuner.train.trainer import Trainer

CONTEXT_BYTES = 600 * 2**20
"""What CUDA keeps for a process beside its tensors: some 500 MiB on data-center GPUs; an estimate on the safe side."""


def allocator_part(share: float, total_bytes: int) -> float:
    """Part of a GPU's memory, in (0, 1], that the tensors of a process with this share may take."""
    return 1.0 if share >= 1 else max(share - CONTEXT_BYTES / total_bytes, 0.01)


def fitting_share(peak_bytes: int, total_bytes: int) -> float:
    """The smallest share, in steps of 0.05 and at most 1, under which tensors of ``peak_bytes`` fit."""
    return min(1.0, math.ceil(20 * (peak_bytes + CONTEXT_BYTES) / total_bytes - 1e-9) / 20)


def limit_gpu_memory(share: float) -> None:
    """Holds this process to its share of the GPU, where it has one."""
    if share > 0 and torch.cuda.is_available():
        total = torch.cuda.get_device_properties().total_memory
        torch.cuda.set_per_process_memory_fraction(allocator_part(share, total))


def why_out_of_memory(spec: TrialSpec, share: float) -> str:
    """One sentence on a training that ran out of memory under its share, with the share that it would need.

    To know it, a step and an evaluation are done once without the limit.
    """
    total = torch.cuda.get_device_properties().total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.reset_peak_memory_stats()
    try:
        training = Trainer(spec, torch.device("cuda"))
        for number, batch, (images, labels) in training._load(range(1)):
            training.network.step(number, batch, images, labels, training._hyperparameters(number, None))
        training.network.evaluate("validation", training._batches(range(1)))
        fits = fitting_share(torch.cuda.max_memory_reserved(), total)
        advice = f"--gpus-per-trial {fits:g} fits it" if fits > share else "another trial took more than its share"
    except torch.OutOfMemoryError:
        advice = "nor does it fit into what other trials leave of the GPU; give --gpus-per-trial 1 or a smaller batch"
    finally:
        limit_gpu_memory(share)
    return f"out of GPU memory with --gpus-per-trial {share:g} ({share * total / 2**30:.1f} GiB); {advice}"
