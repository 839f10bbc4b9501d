"""Reads one image file as one square of pixels: choice of the crop, and scaling.  Nothing here imports torch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Box: TypeAlias = tuple[float, float, float, float]
"""Left, top, width and height in pixels."""

CENTER = 224 / 256
"""Part of the shorter side that evaluation sees; the usual value for ImageNet."""

AREA = (0.08, 1.0)
"""Part of the image's area that a random crop takes (Szegedy et al., arXiv 1409.4842, section 6)."""

ASPECT = (3 / 4, 4 / 3)
"""Width over height of a random crop (Szegedy et al., arXiv 1409.4842, section 6)."""

TRIES = 10
"""Random crops that are drawn until one fits into the image; then the center is taken."""


def center_box(width: int, height: int) -> Box:
    """The central square whose side is CENTER times the shorter side."""
    side = CENTER * min(width, height)
    return (width - side) / 2, (height - side) / 2, side, side


def random_box(width: int, height: int, generator: np.random.Generator) -> Box:
    """A rectangle inside the image: its area is uniform in AREA, the logarithm of its aspect is uniform in ASPECT.

    If none of TRIES draws fits, as in a very long image, it is the largest central rectangle of allowed aspect.
    """
    for _ in range(TRIES):
        area = width * height * generator.uniform(*AREA)
        aspect = math.exp(generator.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        box_width, box_height = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if box_width <= width and box_height <= height:
            left, top = generator.uniform(0, width - box_width), generator.uniform(0, height - box_height)
            return left, top, box_width, box_height
    aspect = min(max(width / height, ASPECT[0]), ASPECT[1])
    box_width, box_height = min(width, height * aspect), min(height, width / aspect)
    return (width - box_width) / 2, (height - box_height) / 2, box_width, box_height


def read_square(path: Path, side: int, generator: np.random.Generator | None) -> NDArray[np.uint8]:
    """The center of the image or, with a generator, a random crop, mirrored with probability 1/2.

    The result is uint8 of shape (side, side, 3).  It is resized with a triangle filter as wide as the reduction.
    Raises one of :data:`tuner.workloads.decoding.READ_ERRORS`.
    """
    with Image.open(path) as image:
        width, height = image.size
        box = center_box(width, height) if generator is None else random_box(width, height, generator)
        left, top, box_width, box_height = box
        # A JPEG decodes at 1/2, 1/4 or 1/8 of its size in a fraction of the time: take the least that the crop allows.
        image.draft("RGB", (math.ceil(width * side / box_width), math.ceil(height * side / box_height)))
        across, down = image.width / width, image.height / height
        corners = (
            left * across,
            top * down,
            min((left + box_width) * across, image.width),
            min((top + box_height) * down, image.height),
        )
        pixels = np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR, box=corners))
    mirrored = generator is not None and generator.uniform() < 0.5
    return pixels[:, ::-1] if mirrored else pixels
