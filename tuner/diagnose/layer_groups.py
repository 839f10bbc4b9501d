"""Divides a model's layers into groups: for a residual network the stem, each block and the head.

Source: ours.  The paper names seven groups of a ResNet-18 and does not state how a model is divided.
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
    """Paths of its modules in the model; their submodules belong to the group too."""
    parameters: tuple[str, ...]
    """Names of its parameters in the model's ``named_parameters``."""


def layer_groups(model: nn.Module) -> tuple[LayerGroup, ...]:
    """The groups in the order of the model's definition; every parameter is in exactly one.

    A group is a child of the model.  Three kinds of modules are opened instead, so that their children are groups:

    - containers (``Sequential``, ``ModuleList``);
    - a child with all of the model's parameters, which is a wrapped model;
    - a module whose class occurs once and whose parameters are mostly in containers, such as a transformer's encoder.

    A normalization belongs to the single layer before it.  A module without parameters (dropout, statistics without a
    scale) belongs to the group before it, or to the first group.  The parameters that an opened module holds itself are
    one group.

    Raises :class:`InvalidInput` for a model with fewer than two groups: there is nothing to rank.
    """
    parts: list[list[str]] = []
    without: list[str] = []
    _open(model, "", Counter(type(module) for module in model.modules()), parts, without)
    taken: set[str] = set()
    groups: list[LayerGroup] = []
    for paths in parts:
        prefixes = tuple(f"{path}." for path in paths)
        # Tied parameters have one name, and belong to the first group that has them.
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
    """Default number of groups that are named: 3/7 of ``num_groups``, as in the paper, in [1, ``num_groups`` - 1]."""
    return min(max(1, round(3 / 7 * num_groups)), num_groups - 1)


def _open(module: nn.Module, path: str, kinds: Counter[type], parts: list[list[str]], without: list[str]) -> None:
    """Adds one list of paths per group, of modules or of an opened module's own parameters, to ``parts``.

    Modules without parameters before the first group are added to ``without``.
    """
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
