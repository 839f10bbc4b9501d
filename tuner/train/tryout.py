"""Two steps of each optimizer that is not a known rule's, before a search starts: what is wrong is one sentence.

A driver asks :func:`try_all` in a process of its own, since a driver imports neither torch nor a user's code that does.
"""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from tuner.core.errors import InvalidInput
from tuner.core.import_path import said
from tuner.core.serialization import from_dict
from tuner.core.trial_spec import TrialSpec
from tuner.optimizers.hyperparameters import hyperparameters_at
from tuner.order import Batch, shuffled_batches
from tuner.train.train_state import TrainState
from tuner.workloads.data import Data, cached_data
from tuner.workloads.models import build_model


def try_out(spec: TrialSpec, *, num_steps: int = 2, check_resume: bool = True) -> None:
    """Makes the spec's network, takes some steps and evaluates it.

    With ``check_resume`` a second network takes the second half of the steps from the state of the first one after the
    first half; both must end with the same bits.  ``num_steps`` is even and at least 2.  Raises :class:`InvalidInput`
    with one sentence for what is wrong.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = cached_data(spec.workload, device)
    epoch = shuffled_batches(data.sizes["train"], spec.workload.batch_size, seed=spec.seed, epoch=0)
    batches = [(number, epoch[number % len(epoch)]) for number in range(num_steps)]
    first, second = batches[: num_steps // 2], batches[num_steps // 2 :]
    network = _made(spec, data, device)
    _require_untouched(spec, network)
    before = [parameter.detach().clone() for parameter in network.model.parameters()]
    _take(spec, network, first)
    stored = io.BytesIO()
    torch.save(network.state(), stored)
    _take(spec, network, second)
    if all(map(torch.equal, before, network.model.parameters())):
        raise InvalidInput("steps change no parameter")
    if not all(bool(parameter.isfinite().all()) for parameter in network.model.parameters()):
        raise InvalidInput(f"the parameters are not finite after {num_steps} steps")
    try:
        network.evaluate("validation", [batch for _, batch in first])
    except (Exception, SystemExit) as error:  # a user's optimizer may fail in any way
        raise InvalidInput(f"the evaluation after a step fails: {said(error)}") from None
    if check_resume:
        _require_resumption(spec, data, device, stored, second, network)


def _made(spec: TrialSpec, data: Data, device: torch.device) -> TrainState:
    return TrainState(spec, data, device, num_steps=_num_steps(spec, data))


def _num_steps(spec: TrialSpec, data: Data) -> int:
    return spec.epochs * max(data.sizes["train"] // spec.workload.batch_size, 2)


def _take(spec: TrialSpec, network: TrainState, batches: Iterable[tuple[int, Batch]]) -> None:
    num_steps = _num_steps(spec, network.data)
    for number, batch in batches:
        values = hyperparameters_at(spec.optimizer, number, num_steps, steps_per_epoch=num_steps // spec.epochs)
        [(inputs, labels)] = network.train_batches([batch])
        try:
            network.step(number, batch, inputs, labels, values)
        except InvalidInput:
            raise
        except (Exception, SystemExit) as error:  # a user's optimizer may fail in any way
            raise InvalidInput(f"step {number + 1} fails: {said(error)}{_hint(error)}") from None


def _hint(error: BaseException) -> str:
    if "closure" in str(error) or "'NoneType' object is not callable" in str(error):
        return "; give its class an attribute requires_closure = True if its step needs a closure"
    if "grad_fn" in str(error) or "create_graph" in str(error):
        return "; set create_graph=true if it differentiates the gradient again"
    if "view size is not compatible" in str(error):
        return "; set contiguous=true if it views parameters as vectors"
    return ""


def _require_untouched(spec: TrialSpec, network: TrainState) -> None:
    """Raises InvalidInput if making the optimizer has changed the model."""
    torch.manual_seed(spec.seed)
    fresh = build_model(spec.workload, **network.data.model_arguments).to(network.device, network.dtype)
    for (name, ours), theirs in zip(network.model.named_parameters(), fresh.parameters(), strict=True):
        if not torch.equal(ours, theirs):
            raise InvalidInput(f"making the optimizer changes the model: {name} is not what it was")


def _require_resumption(
    spec: TrialSpec,
    data: Data,
    device: torch.device,
    stored: io.BytesIO,
    batches: Iterable[tuple[int, Batch]],
    network: TrainState,
) -> None:
    stored.seek(0)
    try:
        state = torch.load(stored, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InvalidInput(
            f"its state_dict holds more than tensors and plain data, which no checkpoint gives back; {_ACCEPT}"
        ) from None
    resumed = _made(spec, data, device)
    try:
        resumed.load(state)
    except Exception as error:  # a user's load_state_dict may fail in any way
        raise InvalidInput(f"its state cannot be loaded: {said(error)}; {_ACCEPT}") from None
    _take(spec, resumed, batches)
    if not all(map(torch.equal, _weights(network), _weights(resumed))):
        raise InvalidInput(
            "a training that is cut and resumed goes on differently, so its state_dict does not hold all of its state; "
            f"{_ACCEPT}"
        )


_ACCEPT = "--no-resume-check accepts that a resumed trial gives other numbers"


def _weights(network: TrainState) -> Iterator[Tensor]:
    return (parameter.detach() for parameter in network.model.parameters())


def try_all(*lines: str) -> str:
    """Tries the specs in order, each ``[name, spec, whether to check resumption]`` in JSON; returns how many.

    Raises :class:`InvalidInput` for the first that does not work.
    """
    for line in lines:
        name, spec, check_resume = json.loads(line)
        try:
            try_out(from_dict(TrialSpec, spec), check_resume=check_resume)
        except InvalidInput as error:
            raise InvalidInput(f"variant {name}: {error}") from None
        except (Exception, SystemExit) as error:  # a user's code may fail, or exit, anywhere
            raise InvalidInput(f"variant {name}: {said(error)}") from None
    return str(len(lines))
