"""The data and the models of the trainings.

A user's own data is made by :func:`tensors` or :func:`map_style`; docs/your-data.md says how.  In reading order:

- ``check``         checks of a workload before a search starts; imports no torch
- ``probe``         loads a workload and tries its model, in a process of its own
- ``data``          ``load_data``: the data of a workload by name
- ``task``          loss and score of a model's outputs
- ``splits``        the fixed split into train, validation and test
- ``datasets``      digits, Fashion-MNIST and CIFAR as arrays
- ``folders``       folders of image files: scan, classes, split
- ``decoding``      image files to pixels, and the cache that processes share
- ``images``        images that are held on the device
- ``augmentation``  random crops and flips of a whole batch
- ``cropping``      one image file to one square of pixels
- ``streaming``     images that are read from disk batch by batch
- ``own_data``      ``tensors`` and ``map_style``: data of the user's own, and its checks
- ``samples``       the same in a training
- ``functions``     a user's own function by name, and its arguments
- ``models``        ``build_model``: the model of a workload by name
- ``resnet``        the small ResNets
- ``population``    the population of the workload diagonal, without torch
- ``diagonal``      samples and models of the workload diagonal
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuner.workloads.own_data import map_style, tensors

__all__ = ["map_style", "tensors"]


def __getattr__(name: str) -> Any:
    # Not imported above: the driver of a search imports this package and needs no torch.
    if name in __all__:
        return getattr(importlib.import_module("tuner.workloads.own_data"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
