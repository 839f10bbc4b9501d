"""Which model goes with which data, by name.  Nothing here imports torch."""

from __future__ import annotations

from tuner.core.errors import InvalidInput

DIAGONAL = "diagonal"
"""The data that is no images."""
DIAGONAL_MODELS = ("diagonal", "diagonal-squares")
"""The models that take it; a user's own ``package.module:function`` may too."""


def default_model(data: str) -> str:
    """The model that is trained where none is named."""
    return DIAGONAL_MODELS[0] if data == DIAGONAL else "resnet8"


def check_model(data: str, model: str) -> None:
    """Raises :class:`InvalidInput` where a model known by name is of the other kind than the data."""
    if ":" in model or (model in DIAGONAL_MODELS) == (data == DIAGONAL):
        return
    if data == DIAGONAL:
        raise InvalidInput(
            f"--model {model}: takes images, and diagonal has none; give {' or '.join(DIAGONAL_MODELS)}, or none"
        )
    raise InvalidInput(f"--model {model}: takes the workload diagonal alone, and {data} has images; give another")
