"""Saves a confirmed run's final weights as an MLflow model that can be loaded and served.

    python -m tuner.tracking.served_model RUN_FOLDER OUT

A model of images takes pixels as image files hold them and returns probabilities.  A model of the workload diagonal,
or of a user's own data, takes inputs and returns outputs, as in the training.  The model is saved as a graph.  So a
program that loads it needs torch and MLflow, but not this package.
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
from tuner.workloads.data import Data, are_images, load_data, with_precision
from tuner.workloads.images import normalize
from tuner.workloads.models import build_model


class ServedModel(nn.Module):
    """Maps pixels (B, C, S, S), uint8, to the probability of each class (B, num_classes), float32."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, model: nn.Module, mean: Tensor, deviation: Tensor) -> None:
        """``model`` takes images normalized by ``mean`` and ``deviation``, both (C, 1, 1)."""
        super().__init__()
        self.model = model
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.model(normalize(pixels, self.mean, self.deviation))
        return logits.softmax(1)


def load_served(folder: Path, store: Store | None = None) -> tuple[nn.Module, Data, TrialSpec]:
    """The model of a confirmed run's folder, the data that it was trained on, and its spec, all on the CPU.

    The model of an image workload is a :class:`ServedModel`.  Any other model takes inputs as its training,
    floats as float32.

    ``store`` holds the final weights; the default is the folder itself.

    Raises :class:`InvalidInput` if the folder is not a confirmed run's, if the final weights are missing, unreadable or
    of another training, and if the data has changed since the training.
    """
    try:
        spec = load_spec(folder / SPEC)
    except (OSError, InvalidInput):
        raise InvalidInput(f"{folder} is no folder of a confirmed run") from None
    store = store or Store(folder)
    content = load_weights(store, spec)
    # Only one batch is read, which is not worth a process of its own.
    data = load_data(replace(spec.workload, loader_workers=0), torch.device("cpu"))
    if data.digest != content["data"]:
        raise InvalidInput(f"{store.place}: the data is not what these weights were trained on")
    model = build_model(spec.workload, **data.model_arguments)
    # The model is in float32, whatever the training's precision.
    model.load_state_dict(content["model"])
    # torch.export's archive does not take weights in channels_last for whole tensors.
    model = model.to(memory_format=torch.contiguous_format)
    served = ServedModel(model, data.mean, data.deviation) if are_images(data) else model
    return served.eval(), data, spec


def example(data: Data) -> Tensor:
    """A batch of two inputs as the served model takes them.

    A graph that is exported with a batch of one would accept only batches of one.
    """
    inputs, _ = next(iter(data.evaluation_batches("validation")))
    inputs = inputs[[0, -1]]
    if are_images(data):
        return (inputs * data.deviation + data.mean).round().to(torch.uint8).contiguous()
    return with_precision(inputs, torch.float32).contiguous()


def save_served(folder: Path, out: Path, store: Store | None = None) -> None:
    """Saves the model of a confirmed run's folder as an MLflow model, complete or not at all.

    Its metadata hold the digests of the spec and of the data, and the names of the classes if it has classes.

    Raises :class:`InvalidInput` as :func:`load_served` does, and if ``out`` exists.  Errors of torch.export pass
    through.
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
            # To infer these, MLflow would load the model in another process.  A build such as "+cu132" is on no index.
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
    """Runs the command; exit status 0, or 2 for bad input after a one-line message."""
    parser = argparse.ArgumentParser(
        prog="python -m tuner.tracking.served_model", description="Saves a trained model for MLflow."
    )
    parser.add_argument("run_folder", type=Path, help="folder of a confirmed run")
    parser.add_argument("out", type=Path, help="new folder for the MLflow model")
    parser.add_argument("--weights", metavar="PLACE", help="folder or URI of the final weights. Default: RUN_FOLDER")
    options = parser.parse_args(arguments)
    try:
        save_served(options.run_folder, options.out, Store(options.weights) if options.weights else None)
    except InvalidInput as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
