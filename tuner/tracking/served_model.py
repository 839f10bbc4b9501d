"""A confirmed run's final weights as an MLflow model that can be loaded and served.

    python -m tuner.tracking.served_model RUN_FOLDER OUT

Of images the model takes pixels as files hold them and gives probabilities; of the workload diagonal it takes inputs
and gives predictions, as in the training.  It is a graph: whoever loads it needs torch and MLflow, not this package.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import mlflow.pytorch
import torch
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from torch import Tensor, nn

from tuner.core.environment import versions
from tuner.core.errors import InvalidInput
from tuner.core.serialization import digest
from tuner.core.store import Store
from tuner.core.trial_spec import SPEC, TrialSpec, load_spec
from tuner.train.final_weights import load_weights
from tuner.workloads.data import Data, are_images, load_data
from tuner.workloads.images import normalize
from tuner.workloads.models import build_model


class ServedModel(nn.Module):
    """Pixels (B, C, S, S), uint8, to the probability of each class (B, num_classes), float32."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, model: nn.Module, mean: Tensor, deviation: Tensor) -> None:
        """``model`` takes images that are normalized by the other two, (C, 1, 1)."""
        super().__init__()
        self.model = model
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.model(normalize(pixels, self.mean, self.deviation))
        return logits.softmax(1)


def load_served(folder: Path, store: Store | None = None) -> tuple[nn.Module, Data, TrialSpec]:
    """The model of a confirmed run's folder, on the CPU, the data it was trained on, and its spec.

    The model is a :class:`ServedModel` of images, and else takes float32.

    ``store`` has its final weights; by default the folder has them.

    Raises :class:`InvalidInput` where the folder has no final weights, and where the data is not what it was.
    """
    try:
        spec = load_spec(folder / SPEC)
    except (OSError, InvalidInput):
        raise InvalidInput(f"{folder} is no folder of a confirmed run") from None
    store = store or Store(folder)
    content = load_weights(store, spec)
    # One batch is read, for which no process is worth starting.
    data = load_data(replace(spec.workload, loader_workers=0), torch.device("cpu"))
    if data.digest != content["data"]:
        raise InvalidInput(f"{store.place}: the data is not what these weights were trained on")
    model = build_model(spec.workload, **data.model_arguments)
    # In float32, whatever the training's precision.
    model.load_state_dict(content["model"])
    # Weights in channels_last are no whole tensors to torch.export's archive.
    model = model.to(memory_format=torch.contiguous_format)
    served = ServedModel(model, data.mean, data.deviation) if are_images(data) else model
    return served.eval(), data, spec


def example(data: Data) -> Tensor:
    """Two inputs as the served model takes them, as the graph would take batches of one alone if it was made of one."""
    inputs, _ = next(iter(data.evaluation_batches("validation")))
    inputs = inputs[[0, -1]]
    if are_images(data):
        return (inputs * data.deviation + data.mean).round().to(torch.uint8).contiguous()
    return inputs.float()


def save_served(folder: Path, out: Path, store: Store | None = None) -> None:
    """Saves the model of a confirmed run's folder as an MLflow model, whole or not at all.

    Its metadata name the classes, where there are any, and the digests of the spec and of the data.
    Raises :class:`InvalidInput` as :func:`load_served` does, and where ``out`` exists; what torch.export has against
    the model is raised as it comes.
    """
    if out.exists():
        raise InvalidInput(f"{out} exists already")
    model, data, spec = load_served(folder, store)
    inputs = example(data)
    with torch.inference_mode():
        outputs = model(inputs)
    classes = {"classes": list(data.classes)} if are_images(data) else {}
    draft = out.with_name(f"{out.name}.new{os.getpid()}")
    try:
        mlflow.pytorch.save_model(
            model,
            draft,
            signature=ModelSignature(_schema(inputs), _schema(outputs)),
            input_example=inputs.numpy(),
            # Given, as MLflow would load the model in another process to find them; the build, "+cu132", is no release.
            pip_requirements=[f"torch=={versions()['torch'].partition('+')[0]}"],
            serialization_format="pt2",
            metadata={**classes, "spec": digest(spec), "data": data.digest},
        )
        draft.replace(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _schema(batch: Tensor) -> Schema:
    return Schema([TensorSpec(batch.numpy().dtype, (-1, *batch.shape[1:]))])


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0, or 2 after one line on what was wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m tuner.tracking.served_model", description="Saves a trained model for MLflow."
    )
    parser.add_argument("run_folder", type=Path, help="folder of a confirmed run")
    parser.add_argument("out", type=Path, help="folder of the MLflow model, to be made")
    parser.add_argument("--weights", metavar="PLACE", help="folder or URI of its final weights. Default: its folder")
    options = parser.parse_args(arguments)
    try:
        save_served(options.run_folder, options.out, Store(options.weights) if options.weights else None)
    except InvalidInput as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
