"""A model's layers in groups: a residual network's stem, its blocks, its head.

Ours: the paper names seven groups of a ResNet-18 and does not say how a model is cut.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from tuner.errors import InvalidInput

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

    A group is a child of the model, except that containers (``Sequential``, ``ModuleList``) are opened, and so is a
    module whose class occurs once and most of whose parameters are in containers, a transformer's encoder say.  A
    normalization belongs to the single layer before it.  Parameters that an opened module holds itself are a group.

    Raises :class:`InvalidInput` for a model with fewer than two: there is nothing to rank.
    """
    kinds = Counter(type(module) for module in model.modules())
    modules = list(_parts(model, "", kinds))
    taken: set[str] = set()
    groups = []
    for paths in modules:
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
            known = tuple(path for path in paths if path not in names)
            groups.append(LayerGroup(paths[0], known, tuple(names)))
    if len(groups) < 2:
        raise InvalidInput(f"the model is one group of layers ({type(model).__name__}): there is nothing to rank")
    return tuple(groups)


def num_named(num_groups: int) -> int:
    """How many of them are named where no number is asked for: three of seven, as in the paper, and not all."""
    return min(max(1, round(3 / 7 * num_groups)), num_groups - 1)


def _parts(module: nn.Module, path: str, kinds: Counter[type]) -> Iterator[list[str]]:
    """Paths of the modules, or of a module's own parameters, that are a group each."""
    before: list[str] | None = None
    own = [f"{path}{name}" for name, _ in module.named_parameters(recurse=False)]
    if own:
        yield own
    for name, child in module.named_children():
        if not any(True for _ in child.parameters()):
            continue
        is_layer = not any(True for _ in child.children())
        if before and is_layer and isinstance(child, NORMS):
            before.append(f"{path}{name}")
            continue
        if before:
            yield before
        before = [f"{path}{name}"] if is_layer else None
        if not is_layer:
            yield from _parts(child, f"{path}{name}.", kinds) if _opens(child, kinds) else [[f"{path}{name}"]]
    if before:
        yield before


def _opens(module: nn.Module, kinds: Counter[type]) -> bool:
    if type(module) in CONTAINERS:
        return True
    inside = sum(_size(child) for child in module.children() if type(child) in CONTAINERS)
    return kinds[type(module)] == 1 and inside > _size(module) / 2


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
