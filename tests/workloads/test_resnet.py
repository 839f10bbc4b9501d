"""The small ResNets against He et al., and models by name."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from tuner.core.errors import InvalidInput
from tuner.core.trial_spec import WorkloadSpec
from tuner.workloads.check import KNOWN_MODELS, prepare
from tuner.workloads.data import load_data
from tuner.workloads.models import MODELS, OPTIONS, RepeatGrey, build_model, find_model
from tuner.workloads.resnet import Block, ResNet

pytestmark = pytest.mark.usefixtures("memory_given_back")


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def build(model: str, *, num_classes: int = 10, channels: int = 3, image_size: int = 32) -> nn.Module:
    return build_model(WorkloadSpec(model=model), num_classes=num_classes, channels=channels, image_size=image_size)


@pytest.mark.parametrize(("depth", "published"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_parameter_counts_are_those_of_table_6(depth: int, published: float) -> None:
    count = num_parameters(ResNet(depth, num_classes=10, channels=3))
    digits = 1 if depth == 110 else 2
    assert round(count / 1e6, digits) == published


@pytest.mark.parametrize("num_blocks", [1, 3])
def test_parameter_count_is_that_of_the_formula(num_blocks: int) -> None:
    # Per group of width w: 2n convolutions of 9 w w weights, of which the first of a later group has 9 w w/2, and
    # two numbers a channel for each batch norm.  Then the stem and the linear layer.
    expected = 9 * 3 * 16 + 2 * 16 + 64 * 10 + 10
    for width in (16, 32, 64):
        expected += 2 * num_blocks * (9 * width * width + 2 * width) - (9 * width * width // 2 if width > 16 else 0)
    assert num_parameters(ResNet(6 * num_blocks + 2, num_classes=10, channels=3)) == expected


@pytest.mark.parametrize("depth", [0, 2, 9, 18])
def test_a_depth_other_than_6n_plus_2_is_refused(depth: int) -> None:
    with pytest.raises(ValueError, match="6n \\+ 2"):
        ResNet(depth, num_classes=10, channels=3)


@pytest.mark.parametrize(
    ("name", "channels", "side"),
    [
        *(("resnet8", channels, side) for channels, side in ((1, 8), (1, 28), (3, 32), (3, 224))),
        *(("resnet18", channels, side) for channels, side in ((1, 8), (1, 28), (3, 32), (3, 224))),
        ("resnet56", 3, 32),
        ("resnet50", 3, 32),
    ],
)
def test_shapes(name: str, channels: int, side: int) -> None:
    model = build(name, num_classes=7, channels=channels, image_size=side)
    images = torch.randn(2, channels, side, side).to(memory_format=torch.channels_last)
    assert model(images).shape == (2, 7)


def test_every_convolution_is_channels_last() -> None:
    for name in ("resnet8", "resnet18"):
        for module in build(name).modules():
            if isinstance(module, nn.Conv2d):
                assert module.weight.is_contiguous(memory_format=torch.channels_last)


def test_the_shortcut_has_no_parameters_and_subsamples() -> None:
    block = Block(2, 4, stride=2).eval()
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    images = torch.rand(3, 2, 5, 5)
    output = block(images)
    assert torch.equal(output[:, 1:3], images[:, :, ::2, ::2])
    assert torch.equal(output[:, [0, 3]], torch.zeros(3, 2, 3, 3))


def test_the_second_and_third_group_halve_the_sides() -> None:
    model = ResNet(14, num_classes=10, channels=3).eval()
    shapes: list[tuple[int, ...]] = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape[1:])))
    model(torch.zeros(1, 3, 32, 32))
    assert shapes == [(16, 32, 32)] * 2 + [(32, 16, 16)] * 2 + [(64, 8, 8)] * 2


def test_initial_weights_have_the_variance_of_he_et_al() -> None:
    torch.manual_seed(0)
    block = ResNet(20, num_classes=10, channels=3).blocks[-1]
    assert isinstance(block, Block)
    weight = block.conv2.weight
    expected = math.sqrt(2 / (9 * 64))
    # The deviation of a deviation over n draws is 1 / sqrt(2n) of it: five of these.
    assert weight.std().item() == pytest.approx(expected, rel=5 / math.sqrt(2 * weight.numel()))


@pytest.mark.parametrize("name", ["resnet8", "resnet18"])
def test_initial_weights_are_a_function_of_the_global_seed(name: str) -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.cat([parameter.flatten() for parameter in build(name).parameters()])

    first = weights(0)
    assert torch.equal(first, weights(0))
    assert not torch.equal(first, weights(1))


def test_gradients_reach_every_parameter() -> None:
    torch.manual_seed(0)
    model = ResNet(14, num_classes=4, channels=1)
    nn.functional.cross_entropy(model(torch.randn(8, 1, 8, 8)), torch.arange(8) % 4).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(("side", "expected_side"), [(32, 4), (63, 8), (64, 2)])
def test_resnet18_sees_small_images_whole(side: int, expected_side: int) -> None:
    model = build("resnet18", image_size=side)
    sides: list[int] = []
    layer = model.get_submodule("layer4")
    layer.register_forward_hook(lambda module, inputs, output: sides.append(output.shape[-1]))
    model.eval()(torch.zeros(1, 3, side, side))
    assert sides == [expected_side]


def test_torchvision_models_are_as_published() -> None:
    # Numbers of parameters that torchvision's pages give, for 1,000 classes.
    assert num_parameters(build("resnet18", num_classes=1000, image_size=224)) == 11_689_512
    assert num_parameters(build("resnet50", num_classes=1000, image_size=224)) == 25_557_032
    assert num_parameters(build("squeezenet1_1", num_classes=1000, image_size=224)) == 1_235_496


def test_a_grey_image_is_repeated() -> None:
    model = build("resnet18", channels=1, image_size=28).eval()
    images = torch.rand(2, 1, 28, 28)
    assert isinstance(model.get_submodule("color"), RepeatGrey)
    assert torch.equal(model(images), model.get_submodule("classifier")(torch.cat([images] * 3, dim=1)))


def test_models_that_know_one_size_are_told_it() -> None:
    assert build("vit_b_32", num_classes=5, image_size=64).eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 5)


@pytest.mark.parametrize("name", ["googlenet"])
def test_auxiliary_outputs_are_left_out(name: str) -> None:
    assert build(name, num_classes=5, image_size=64)(torch.zeros(2, 3, 64, 64)).shape == (2, 5)
    assert name in OPTIONS


def test_a_model_that_cannot_take_the_images_is_refused() -> None:
    with pytest.raises(InvalidInput, match="'alexnet' cannot take 8x8 images"):
        build("alexnet", image_size=8)


def test_models_that_do_not_classify_images_are_unknown() -> None:
    for name in ("fcn_resnet50", "fasterrcnn_resnet50_fpn", "r3d_18"):
        with pytest.raises(InvalidInput, match="unknown model"):
            find_model(name)


def test_a_function_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_models.py").write_text(
        "from torch import nn\n"
        "def linear(*, num_classes, channels, image_size):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(channels * image_size**2, num_classes))\n"
        "def part(input_shape, num_outputs, width=8):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(input_shape[0] * width**2, num_outputs))\n"
        "def number(*, num_classes, channels, image_size):\n"
        "    return 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    model = build("own_models:linear", num_classes=3, channels=1, image_size=8)
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 3)
    offered = load_data(WorkloadSpec(), torch.device("cpu")).model_arguments
    model = build_model(WorkloadSpec(model="own_models:part"), **offered)
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    with pytest.raises(InvalidInput, match="gave a int"):
        build("own_models:number")
    # The check looks in a process of its own, which must find what this one finds.
    prepare(WorkloadSpec(model="own_models:linear"))
    with pytest.raises(InvalidInput, match="did you mean 'linear'"):
        prepare(WorkloadSpec(model="own_models:linaer"))
    with pytest.raises(InvalidInput, match="own_model:linear: cannot be imported"):
        prepare(WorkloadSpec(model="own_model:linear"))


def test_a_misspelt_model_is_told_the_nearest() -> None:
    with pytest.raises(InvalidInput, match="unknown model 'mobilnet_v2': did you mean 'mobilenet_v2'"):
        prepare(WorkloadSpec(model="mobilnet_v2"))
    prepare(WorkloadSpec(model="mobilenet_v2"))


def test_the_check_knows_the_models() -> None:
    assert set(KNOWN_MODELS) == set(MODELS)
