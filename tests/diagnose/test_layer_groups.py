"""Layer groups: every parameter in one, blocks whole, for any model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tuner.core.errors import InvalidInput
from tuner.core.trial_spec import WorkloadSpec
from tuner.diagnose.layer_groups import layer_groups
from tuner.workloads.models import build_model


def names_of(model: nn.Module) -> list[str]:
    return [group.name for group in layer_groups(model)]


def built(name: str, channels: int = 3) -> nn.Module:
    return build_model(WorkloadSpec(model=name), num_classes=10, channels=channels, image_size=64)


def test_a_small_resnet_is_stem_blocks_and_head() -> None:
    stem, *blocks, head = layer_groups(built("resnet8"))
    assert (stem.name, stem.modules) == ("conv", ("conv", "norm"))
    assert [group.name for group in blocks] == ["blocks.0", "blocks.1", "blocks.2"]
    assert (head.name, head.parameters) == ("linear", ("linear.weight", "linear.bias"))


@pytest.mark.parametrize(("channels", "inside"), [(3, ""), (1, "classifier.")])
def test_torchvisions_resnet_is_ten_groups_behind_a_wrapper_too(channels: int, inside: str) -> None:
    blocks = [f"layer{stage}.{block}" for stage in range(1, 5) for block in range(2)]
    assert names_of(built("resnet18", channels)) == [inside + name for name in ("conv1", *blocks, "fc")]


@pytest.mark.parametrize("name", ["resnet20", "vit_b_16", "mobilenet_v2", "vgg11_bn", "densenet121", "swin_t"])
def test_every_parameter_is_in_one_group(name: str) -> None:
    model = built(name)
    in_groups = [parameter for group in layer_groups(model) for parameter in group.parameters]
    assert sorted(in_groups) == sorted(parameter for parameter, _ in model.named_parameters())


def test_what_has_no_parameters_belongs_to_the_group_before_it_or_to_the_first() -> None:
    norm = nn.BatchNorm2d(3, affine=False)
    model = nn.Sequential(
        nn.Dropout(), nn.Conv2d(3, 3, 1), norm, nn.ReLU(), nn.Flatten(), nn.Linear(3, 2), nn.Dropout()
    )
    assert [group.modules for group in layer_groups(model)] == [("1", "2", "3", "4", "0"), ("5", "6")]


def test_an_encoder_is_opened_and_its_blocks_are_not() -> None:
    names = names_of(built("vit_b_16"))
    assert [name for name in names if "encoder_layer" in name] == [
        f"encoder.layers.encoder_layer_{number}" for number in range(12)
    ]
    assert {"class_token", "encoder.pos_embedding", "encoder.ln"} <= set(names)
    assert names_of(built("vit_b_16", channels=1)) == [f"classifier.{name}" for name in names]


def test_tied_parameters_belong_to_the_first_group_that_has_them() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    groups = layer_groups(nn.Sequential(first, nn.ReLU(), second))
    assert [group.parameters for group in groups] == [("0.weight", "0.bias"), ("2.bias",)]


def test_a_normalization_goes_with_the_single_layer_before_it_alone() -> None:
    block = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1))
    assert [group.modules for group in layer_groups(nn.Sequential(block, nn.BatchNorm2d(3)))] == [
        ("0.0", "0.1"),
        ("0.2",),
        ("1",),
    ]


@pytest.mark.parametrize("model", [nn.Linear(3, 2), nn.Sequential(nn.Linear(3, 2)), nn.ReLU()])
def test_one_group_is_nothing_to_rank(model: nn.Module) -> None:
    with pytest.raises(InvalidInput, match="is one group of layers"):
        layer_groups(model)


def test_parameters_that_a_model_holds_itself_are_a_group() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2))
            self.linear = nn.Linear(2, 2)

    assert [group.parameters for group in layer_groups(Scaled())] == [("scale",), ("linear.weight", "linear.bias")]
