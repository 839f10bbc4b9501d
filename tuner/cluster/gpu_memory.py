"""Several trainings on one GPU: each is limited to its share of the memory.

``--gpus-per-trial`` s gives a training the part s of a GPU's memory, less what CUDA itself takes for each process.
The error of a training that runs out of memory names the share that would fit it.  Source: ours.
"""

from __future__ import annotations

import math

import torch

from tuner.core.trial_spec import TrialSpec
from tuner.train.trainer import Trainer

CONTEXT_BYTES = 600 * 2**20
"""Bytes that CUDA keeps for a process beside its tensors.

They are about 500 MiB on data-center GPUs; this estimate is deliberately above that.
"""


def allocator_part(share: float, total_bytes: int) -> float:
    """Part of a GPU's memory, in [0.01, 1], that the tensors of a process with this share may take."""
    return 1.0 if share >= 1 else max(share - CONTEXT_BYTES / total_bytes, 0.01)


def fitting_share(peak_bytes: int, total_bytes: int) -> float:
    """The smallest share under which tensors of ``peak_bytes`` fit: a multiple of 0.05, at most 1."""
    return min(1.0, math.ceil(20 * (peak_bytes + CONTEXT_BYTES) / total_bytes - 1e-9) / 20)


def limit_gpu_memory(share: float) -> None:
    """Limits this process's tensors to its share of the GPU's memory; does nothing without a GPU."""
    if share > 0 and torch.cuda.is_available():
        total = torch.cuda.get_device_properties().total_memory
        torch.cuda.set_per_process_memory_fraction(allocator_part(share, total))


def why_out_of_memory(spec: TrialSpec, share: float) -> str:
    """The error message of a training that ran out of memory under its share; it names the share that would fit.

    That share is measured: one step and one evaluation run without the limit.
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
        advice = "it needs more than other trials leave free on the GPU; use --gpus-per-trial 1 or a smaller batch"
    finally:
        limit_gpu_memory(share)
    return f"out of GPU memory with --gpus-per-trial {share:g} ({share * total / 2**30:.1f} GiB); {advice}"
