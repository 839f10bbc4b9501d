"""The final weights of a confirmed run, and the one place where the test split is read."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import torch

from tuner.errors import InvalidInput
from tuner.network import Network
from tuner.outage import patiently
from tuner.settings import digest, with_settings
from tuner.spec import TrialSpec
from tuner.store import WEIGHTS, Store
from tuner.workloads.data import cached_data

FORMAT = 1


def save_weights(network: Network, store: Store) -> None:
    """Writes the weights and buffers that evaluation uses, on the CPU, with the spec's digest and that of the images
    and their splits.  Raises :class:`StorageFailed` where the storage stays away."""
    content = {
        "format": FORMAT,
        "spec": digest(network.spec),
        "data": network.data.digest,
        "model": network.evaluated_state(),
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    patiently(f"{store.place}/{WEIGHTS}", lambda: store.write(WEIGHTS, buffer.getvalue()))


def load_weights(store: Store, spec: TrialSpec) -> dict[str, Any]:
    """What :func:`save_weights` wrote: ``model`` and ``data``.

    Raises :class:`InvalidInput` for weights that are not there or of another training.
    """
    path = f"{store.place}/{WEIGHTS}"

    def read() -> bytes:
        try:
            return store.read(WEIGHTS)
        except FileNotFoundError:
            raise InvalidInput(f"{path} is not there") from None

    content: dict[str, Any] = torch.load(io.BytesIO(patiently(path, read)), map_location="cpu", weights_only=True)
    if content.get("format") != FORMAT or content.get("spec") != digest(spec):
        raise InvalidInput(f"{path} has the weights of another training")
    return content


def score_on_test(spec: TrialSpec, store: Store, device: torch.device | None = None) -> tuple[float, float, str]:
    """Loss and accuracy of final weights on the test split, and the digest of the data.

    Raises :class:`InvalidInput` where the data is not what the weights were trained on.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    content = load_weights(store, spec)
    data = cached_data(spec.workload, device, sealed=False)
    if data.digest != content["data"]:
        raise InvalidInput(f"{store.place}: the data is not what these weights were trained on")
    # The weights are those of the average already, where there is one.
    network = Network(
        dataclasses.replace(spec, optimizer=with_settings(spec.optimizer, {"average.decay": 0.0})),
        data,
        device,
        num_steps=1,
    )
    network.model.load_state_dict(content["model"])
    return *network.evaluate("test"), data.digest
