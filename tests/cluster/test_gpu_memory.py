"""Several trainings on one GPU keep to their shares; one that does not fit says which share would."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.worker import worked
from tuner.cluster.gpu_memory import CONTEXT_BYTES, allocator_part, fitting_share
from tuner.core.trial_spec import TrialSpec, WorkloadSpec

GIB = 2**30


@pytest.mark.parametrize("share", [0.05, 0.25, 1 / 3, 0.5])
@pytest.mark.parametrize("total", [16 * GIB, 80 * GIB])
def test_as_many_processes_fit_as_shares_are_handed_out(share: float, total: int) -> None:
    tensors = allocator_part(share, total) * total
    assert int(1 / share) * (tensors + CONTEXT_BYTES) <= total * (1 + 1e-9)
    assert allocator_part(1.0, total) == allocator_part(2.0, total) == 1.0


def test_a_share_too_small_for_cuda_itself_leaves_a_little() -> None:
    assert 0 < allocator_part(0.001, 16 * GIB) <= 0.01


@pytest.mark.parametrize("peak", [0.1, 3.0, 19.0, 39.99, 70.0])
def test_the_share_that_is_named_fits_and_the_one_below_does_not(peak: float) -> None:
    total = 80 * GIB
    share = fitting_share(int(peak * GIB), total)
    assert allocator_part(share, total) * total >= peak * GIB - 1
    assert share * 20 == pytest.approx(round(share * 20)), "in twentieths"
    if share > 0.05:
        assert allocator_part(share - 0.05, total) * total < peak * GIB


def test_more_than_the_whole_is_the_whole() -> None:
    assert fitting_share(90 * GIB, 80 * GIB) == 1.0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_training_that_does_not_fit_its_share_names_one_that_does(tmp_path: Path) -> None:
    workload = WorkloadSpec(model="resnet50", batch_size=512)
    with pytest.raises(ValueError, match=r"out of GPU memory with --gpus-per-trial 0.01 .*; --gpus-per-trial .* fits"):
        worked(tmp_path, TrialSpec(workload=workload, epochs=1), "race", gpu_share=0.01)
