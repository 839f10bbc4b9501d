"""A model's layers in groups: a residual network's stem, its blocks, its head.

Ours: the paper names seven groups of a ResNet-18 and does not say how a model is cut.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from torch import nn

from tuner.core.errors import InvalidInput

CONTAINERS = (nn.Sequential, nn.ModuleList)
NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """Layers that are ranked, frozen and retrained together."""

    name: str
    """Path of its first module in the model."""
    modules: tuple[str, ...]
    """Paths of its modules, all of whose parts belong to it."""
    parameters: tuple[str, ...]
    """Names of its parameters, as the model's ``named_parameters`` has them."""


def layer_groups(model: nn.Module) -> tuple[LayerGroup, ...]:
    """The groups in the order of the model's definition; every parameter is in exactly one.

    A group is a child of the model, except that containers (``Sequential``, ``ModuleList``) are opened, and so are a
    child with all of the model's parameters (it is wrapped), and a module whose class occurs once and most of whose
    parameters are in containers, a transformer's encoder say.  A normalization belongs to the single layer before it,
    and what has no parameters (dropout, statistics without a scale) to the group before it, or to the first.
    Parameters that an opened module holds itself are a group.

    Raises :class:`InvalidInput` for a model with fewer than two: there is nothing to rank.
    """
    parts: list[list[str]] = []
    without: list[str] = []
    _open(model, "", Counter(type(module) for module in model.modules()), parts, without)
    taken: set[str] = set()
    groups: list[LayerGroup] = []
    for paths in parts:
        prefixes = tuple(f"{path}." for path in paths)
        # Tied parameters are named once, and belong to the first.
        names = [
            name
            for name, _ in model.named_parameters()
            if name in paths or name.startswith(prefixes)
            if name not in taken
        ]
        if names:
            taken.update(names)
            modules = [path for path in paths if path not in names]
            groups.append(LayerGroup(paths[0], tuple([*modules, *([] if groups else without)]), tuple(names)))
    if len(groups) < 2:
        raise InvalidInput(f"the model is one group of layers ({type(model).__name__}): there is nothing to rank")
    return tuple(groups)


def num_named(num_groups: int) -> int:
    """How many of them are named where no number is asked for: three of seven, as in the paper, and not all."""
    return min(max(1, round(3 / 7 * num_groups)), num_groups - 1)


def _open(module: nn.Module, path: str, kinds: Counter[type], parts: list[list[str]], without: list[str]) -> None:
    """Adds paths of the modules, or of a module's own parameters, that are a group each; to ``without`` what leads and
    has no parameters."""
    if own := [f"{path}{name}" for name, _ in module.named_parameters(recurse=False)]:
        parts.append(own)
    after_layer = False
    for name, child in module.named_children():
        here = f"{path}{name}"
        is_layer = not any(True for _ in child.children())
        if not any(True for _ in child.parameters()):
            (parts[-1] if parts else without).append(here)
        elif after_layer and is_layer and isinstance(child, NORMS):
            parts[-1].append(here)
        elif not is_layer and (_opens(child, kinds) or (_size(child) == _size(module) and not path)):
            _open(child, f"{here}.", kinds, parts, without)
            after_layer = False
        else:
            parts.append([here])
            after_layer = is_layer


def _opens(module: nn.Module, kinds: Counter[type]) -> bool:
    if type(module) in CONTAINERS:
        return True
    inside = sum(_size(child) for child in module.children() if type(child) in CONTAINERS)
    return kinds[type(module)] == 1 and inside > _size(module) / 2


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
