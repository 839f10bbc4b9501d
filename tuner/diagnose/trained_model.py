"""Loads a trained network by the name of its run, by the run's id in MLflow, or from a file of weights."""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tuner.core.errors import InvalidInput, first_line, unknown
from tuner.core.metrics import EpochMetrics
from tuner.core.search_spec import DEFAULT_TRACKING_URI
from tuner.core.serialization import digest
from tuner.core.store import CHECKPOINT, WEIGHTS, Store
from tuner.core.trial_spec import SPEC, TrialSpec, load_spec
from tuner.study.results import Search, load_search
from tuner.study.trial_record import TrialRecord
from tuner.tracking.nested_runs import SearchRuns
from tuner.train import train
from tuner.train.final_weights import load_weights


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A trained network and where it comes from."""

    name: str
    spec: TrialSpec
    state: Mapping[str, Tensor]
    """The weights and buffers that its evaluations used, on the CPU."""
    data: str | None
    """Digest of the images that it was trained on; None if that is not known."""
    history: tuple[EpochMetrics, ...]
    """Metrics of the training's epochs; empty for a file of weights."""
    folder: Path
    """Default folder for the files of its diagnosis."""
    search: Search | None
    """The search that trained it; None for a file of weights."""
    run: str | None
    """Name of its run in the search; None for a file of weights."""


def load_trained_model(
    name: str,
    *,
    output: str = "runs",
    storage: str | None = None,
    tracking_uri: str | None = None,
    spec_file: Path | None = None,
) -> TrainedModel:
    """Loads ``name``: ``SEARCH/RUN`` in the folder ``output``, a run's id in MLflow, or a file of weights.

    A file holds final weights or a checkpoint of this package, or a model's ``state_dict``.  Its :class:`TrialSpec` is
    ``spec_file``, by default ``spec.json`` beside it.  A search does not save the weights of its trials.  A trial is
    therefore trained again, and its weights are kept in its folder.  On a CPU of the same kind they are the same.

    Raises :class:`InvalidInput` for what does not exist, for a training that did not run to its end, and for a trial
    that gives other numbers when it is trained again.
    """
    if Path(name).is_file():
        return _from_file(Path(name), spec_file)
    if spec_file is not None:
        raise InvalidInput(f"--spec {spec_file}: applies to a file of weights, and {name} is no file")
    if len(name) == 32 and set(name) <= set("0123456789abcdef"):
        run = SearchRuns(tracking_uri or DEFAULT_TRACKING_URI).by_id(name)
        search_name, run_name = run.search, run.name
    else:
        run, (search_name, _, run_name) = None, name.partition("/")
    if not run_name:
        raise InvalidInput(f"{name}: must be SEARCH/RUN, a run's id in MLflow, or a file of weights")
    search = load_search(search_name, output=output, storage=storage)
    if run and run.search_id != search.search_id:
        raise InvalidInput(f"{name}: belongs to another search than the one of this name in {output}")
    if run_name not in search.records:
        raise unknown(f"run of {search_name}", run_name, search.records)
    return _from_search(search, search.records[run_name])


def _from_search(search: Search, record: TrialRecord) -> TrainedModel:
    name = f"{search.folder.name}/{record.name}"
    if record.status != "finished" or not record.history:
        ended = f"its status is {record.status}" if record.history else "it has no log"
        raise InvalidInput(f"{name}: {ended}; only a training that ran to its end has final weights")
    folder = search.folder / record.folder_name
    if record.phase == "confirm":
        content = load_weights(search.store(record), record.spec)
    else:
        content = _trained_again(name, record, Store(folder / "trained-again"))
    return TrainedModel(
        name,
        record.spec,
        content["model"],
        content["data"],
        tuple(record.history),
        folder / "diagnosis",
        search,
        record.name,
    )


def _trained_again(name: str, record: TrialRecord, store: Store) -> dict[str, Any]:
    """The weights of a trial, which is trained again; continues after an earlier program that was killed."""
    store.make()
    if WEIGHTS not in store.names():
        *_, last = train(record.spec, store=store, keep_weights=True)
        for checkpoint in filter(CHECKPOINT.fullmatch, store.names()):
            store.delete(checkpoint)
        was = record.history[-1]
        same_loss = math.isclose(last.validation_loss, was.validation_loss, rel_tol=1e-3)
        if last.validation_accuracy != was.validation_accuracy or not same_loss:
            store.delete(WEIGHTS)
            raise InvalidInput(
                f"{name}: trained again here, it reached a validation accuracy of {last.validation_accuracy:.2%} and "
                f"a loss of {last.validation_loss:.4g} instead of {was.validation_accuracy:.2%} and "
                f"{was.validation_loss:.4g}; another device or number of threads gives other numbers"
            )
    return load_weights(store, record.spec)


def _from_file(path: Path, spec_file: Path | None) -> TrainedModel:
    spec_file = spec_file or path.parent / SPEC
    try:
        spec = load_spec(spec_file)
    except FileNotFoundError:
        raise InvalidInput(
            f"{path}: name the training that it comes from with --spec FILE, a TrialSpec in JSON"
        ) from None
    except OSError as error:
        raise InvalidInput(f"--spec {spec_file}: {first_line(error)}") from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError, KeyError, ValueError) as error:
        raise InvalidInput(f"{path}: is no file of weights ({first_line(error)[:100]})") from None
    state, data = _state(path, content, spec)
    return TrainedModel(str(path), spec, state, data, (), path.parent / f"{path.stem}-diagnosis", None, None)


def _state(path: Path, content: Any, spec: TrialSpec) -> tuple[Mapping[str, Tensor], str | None]:
    """The model's weights from any of the three forms, and the digest of the data, None if the form has none."""
    if isinstance(content, dict) and "format" in content:
        if content.get("spec") != digest(spec):
            raise InvalidInput(f"{path} has the weights of another training")
        if "model" in content:
            return content["model"], str(content["data"])
        if average := content["state"].get("average"):
            prefix = "module."
            return {key.removeprefix(prefix): value for key, value in average.items() if key.startswith(prefix)}, None
        return content["state"]["model"], None
    if not isinstance(content, dict) or not all(map(_is_weight, content.items())):
        raise InvalidInput(f"{path}: is neither weights nor a checkpoint of this package, nor a model's state_dict")
    return content, None


def _is_weight(item: tuple[Any, Any]) -> bool:
    name, value = item
    return isinstance(name, str) and isinstance(value, Tensor)
