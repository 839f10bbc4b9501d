"""A planted fault is where it was put, and of the size that was asked for."""

from __future__ import annotations

import pytest
import torch

from benchmarks.planted_faults import plant_fault
from tests.trained_digits import trained
from tuner.diagnose.layer_groups import layer_groups

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("place", range(5))
def test_it_is_in_one_group_and_can_be_taken_out(place: int) -> None:
    model = trained().model
    group = layer_groups(model)[place]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    removed = plant_fault(model, group, noise=0.5, seed=3)
    after = model.state_dict()
    assert removed.keys() == set(group.parameters)
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor) == (name not in removed), name
        assert name not in removed or torch.equal(removed[name], tensor)
    model.load_state_dict(removed, strict=False)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_its_size_is_a_share_of_the_weights_and_its_seed_draws_it() -> None:
    model, again, other = (trained().model for _ in range(3))
    group = layer_groups(model)[3]
    (name, before), *_ = plant_fault(model, group, noise=0.5, seed=3).items()
    plant_fault(again, group, noise=0.5, seed=3)
    plant_fault(other, group, noise=0.5, seed=4)
    planted = model.state_dict()[name]
    assert torch.equal(planted, again.state_dict()[name]) and not torch.equal(planted, other.state_dict()[name])
    assert float((planted - before).norm() / before.norm()) == pytest.approx(0.5, rel=0.05)
