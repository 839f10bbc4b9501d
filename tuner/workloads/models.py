"""Models by name."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from tuner.core.errors import InvalidInput, unknown
from tuner.core.trial_spec import WorkloadSpec, check_model, is_own
from tuner.workloads.diagonal import diagonal, diagonal_squares
from tuner.workloads.functions import arguments_of, find_function
from tuner.workloads.resnet import ResNet

SMALL_SIDE = 64
"""Side in pixels below which a stem that divides the sides by 4 leaves too little for the residual blocks."""


Builder: TypeAlias = Callable[..., nn.Module]
"""Makes a model with fresh weights from torch's global generator, from those ``model_arguments`` that it names."""


def build_model(spec: WorkloadSpec, **model_arguments: int | tuple[int, ...]) -> nn.Module:
    """The workload's model, in channels_last.  The weights come from torch's global generator: seed it first.

    A model of images maps (B, channels, image_size, image_size) to logits (B, num_classes).  A model of the workload
    diagonal maps (B, dimension) to predictions (B,).  The builder is called with those arguments that its signature
    names, and with all if it has ``**kwargs``:

    ===================  ================================================================================
    argument             data that has it
    ===================  ================================================================================
    ``num_classes``      classification
    ``num_outputs``      all but data of the user's own whose task has neither classes nor float labels
    ``input_shape``      all: the shape of an input, channels first, without the batch
    ``channels``         square images
    ``image_size``       square images: the side in pixels
    ``dimension``        diagonal
    ===================  ================================================================================

    Raises :class:`InvalidInput` for an unknown name, for a model that is not for this data, for an argument that the
    data does not have, and for a torchvision model that cannot take images of this size.
    """
    check_model(spec.data, spec.model)
    builder, place, offered = find_model(spec.model), f"--model {spec.model}", dict(model_arguments)
    if ":" not in spec.model:
        if is_own(spec.data) and "image_size" not in offered:
            raise InvalidInput(
                f"{place}: takes square images of floats, and {spec.data} has other inputs, of shape "
                f"{offered['input_shape']}; name a model of your own with --model package.module:function"
            )
        if "num_outputs" in offered:
            # A model known by name calls its outputs classes, whatever the task.
            offered["num_classes"] = offered["num_outputs"]
    model = builder(**arguments_of(builder, offered, place))
    if not isinstance(model, nn.Module):
        raise InvalidInput(f"{place}: gave a {type(model).__name__}, not a torch.nn.Module")
    # torch refuses this format for weights of five dimensions.
    if any(weight.ndim == 5 for weight in itertools.chain(model.parameters(), model.buffers())):
        return model
    return model.to(memory_format=torch.channels_last)


def find_model(name: str) -> Builder:
    """The builder of a model: ``name`` is a key of :data:`MODELS`, a torchvision classifier or ``module:function``.

    Raises :class:`InvalidInput` for an unknown name.
    """
    if name in MODELS:
        return MODELS[name]
    if ":" in name:
        return find_function("--model", name)
    from torchvision import models

    classifiers = models.list_models(module=models)
    if name not in classifiers:
        raise unknown("model", name, [*MODELS, *classifiers])
    return partial(_torchvision, name)


def _small_resnet(depth: int, *, num_classes: int, channels: int) -> nn.Module:
    return ResNet(depth, num_classes=num_classes, channels=channels)


def _torchvision(name: str, *, num_classes: int, channels: int, image_size: int) -> nn.Module:
    from torchvision.models import get_model

    options = OPTIONS[name](image_size) if name in OPTIONS else {}
    model: nn.Module = get_model(name, weights=None, num_classes=num_classes, **options)
    return _color(_require_logits(model, name, num_classes, image_size), channels)


def _torchvision_resnet(name: str, *, num_classes: int, channels: int, image_size: int) -> nn.Module:
    """torchvision's ResNet; below SMALL_SIDE its stem is a 3x3 convolution of stride 1 without pooling."""
    from torchvision.models import get_model

    model: nn.Module = get_model(name, weights=None, num_classes=num_classes)
    if image_size < SMALL_SIDE:
        stem = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
        model.conv1, model.maxpool = stem, nn.Identity()
    return _color(model, channels)


class RepeatGrey(nn.Module):
    """(B, 1, H, W) -> (B, 3, H, W) by repetition, so torchvision's models need no change for grey images."""

    def forward(self, images: Tensor) -> Tensor:
        return images.expand(-1, 3, -1, -1)


def _color(model: nn.Module, channels: int) -> nn.Module:
    if channels == 3:
        return model
    return nn.Sequential(OrderedDict(color=RepeatGrey(), classifier=model))


def _require_logits(model: nn.Module, name: str, num_classes: int, image_size: int) -> nn.Module:
    """Returns the model.  Raises InvalidInput if it cannot take such images; only shapes are computed (device meta)."""
    state = {key: value.to("meta") for key, value in model.state_dict(keep_vars=True).items()}
    image = torch.empty(1, 3, image_size, image_size, device="meta")
    try:
        logits = torch.func.functional_call(model.eval(), state, (image,))
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise InvalidInput(f"model {name!r} cannot take {image_size}x{image_size} images: {reason}") from None
    if logits.shape != (1, num_classes):
        raise InvalidInput(f"model {name!r} gives {tuple(logits.shape)} for an image, not (1, {num_classes})")
    return model.train()


MODELS: dict[str, Builder] = {
    "resnet8": partial(_small_resnet, 8),
    "resnet20": partial(_small_resnet, 20),
    "resnet32": partial(_small_resnet, 32),
    "resnet56": partial(_small_resnet, 56),
    "resnet18": partial(_torchvision_resnet, "resnet18"),
    "resnet34": partial(_torchvision_resnet, "resnet34"),
    "resnet50": partial(_torchvision_resnet, "resnet50"),
    "diagonal": diagonal,
    "diagonal-squares": diagonal_squares,
}
"""Name -> builder; :func:`find_model` knows all other classifiers of torchvision too."""

OPTIONS: dict[str, Callable[[int], dict[str, Any]]] = {
    # With auxiliary classifiers the output in training would be a tuple.
    "googlenet": lambda side: {"aux_logits": False, "init_weights": True},
    "inception_v3": lambda side: {"aux_logits": False, "init_weights": True},
    # Position embeddings and windows are made for one size of image.
    "maxvit_t": lambda side: {"input_size": (side, side)},
    "vit_b_16": lambda side: {"image_size": side},
    "vit_b_32": lambda side: {"image_size": side},
    "vit_h_14": lambda side: {"image_size": side},
    "vit_l_16": lambda side: {"image_size": side},
    "vit_l_32": lambda side: {"image_size": side},
}
"""torchvision model -> keyword arguments for images of a side, for models whose defaults do not fit."""
