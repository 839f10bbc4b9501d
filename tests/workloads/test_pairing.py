"""Which model is trained on which data, and that what was saved before there was a choice goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tuner.core.errors import InvalidInput
from tuner.core.search_spec import SearchSpec
from tuner.core.trial_spec import DIAGONAL_MODELS, TrialSpec, WorkloadSpec, check_model, default_model
from tuner.search.arguments import parse
from tuner.train import train
from tuner.train.__main__ import main
from tuner.train.trainer import Trainer
from tuner.workloads.check import CHECKS, KNOWN_MODELS, check_workload, prepare


@pytest.mark.parametrize("data", sorted(CHECKS))
def test_the_default_model_goes_with_its_data(data: str) -> None:
    check_model(data, default_model(data))
    for model in KNOWN_MODELS:
        if (model in DIAGONAL_MODELS) == (data == "diagonal"):
            check_model(data, model)
        else:
            with pytest.raises(InvalidInput, match=f"--model {model}: takes"):
                check_model(data, model)
    check_model(data, "mine:model")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (
            WorkloadSpec(data="diagonal", model="resnet8"),
            "--model resnet8: takes images, and diagonal has none; give diagonal or",
        ),
        (WorkloadSpec(model="diagonal"), "--model diagonal: takes the workload diagonal alone, and digits has images"),
        (WorkloadSpec(data="diagonal", model="vit_b_16"), "--model vit_b_16: takes images"),
    ],
)
def test_a_pair_that_cannot_be_is_refused_by_the_driver_and_by_the_training(spec: WorkloadSpec, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        check_workload(spec)
    with pytest.raises(InvalidInput, match=said):
        Trainer(TrialSpec(workload=spec), torch.device("cpu"))


def test_a_search_trains_what_goes_with_its_workload_unless_told() -> None:
    for arguments, model in (
        ([], "resnet8"),
        (["--workload", "diagonal"], "diagonal"),
        (["--workload", "diagonal", "--model", "diagonal-squares"], "diagonal-squares"),
        (["--model", "resnet20"], "resnet20"),
    ):
        spec, _ = parse(arguments)
        assert spec.training.workload.model == spec.workload_spec().model == model
    assert SearchSpec.from_flags(workload="diagonal").training.workload.model == "diagonal"


@pytest.mark.parametrize(("workload", "model"), [("digits", "resnet8"), ("diagonal", "diagonal-squares")])
def test_a_search_goes_on_with_the_model_it_has(workload: str, model: str, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    saved = {"id": "x", "content": {}, "spec": {"name": "a", "round_size": 4, "workload": workload, "model": model}}
    (tmp_path / "a/search.json").write_text(json.dumps(saved))
    spec, _ = parse(["--resume", "a", "--output", str(tmp_path), "--trials", "99"])
    assert spec.training.workload.model == model
    with pytest.raises(InvalidInput, match=f"--model resnet20: search 'a' was started with {model}"):
        parse(["--resume", "a", "--output", str(tmp_path), "--model", "resnet20"])


def test_one_training_takes_the_model_of_its_data_too(capsys: pytest.CaptureFixture[str]) -> None:
    for given, model in (
        (["workload.data=diagonal"], "diagonal"),
        (["workload.model=diagonal-squares", "workload.data=diagonal"], "diagonal-squares"),
        (["workload.data=cifar10"], "resnet8"),
    ):
        assert main(["--print-spec", "--set", *given]) == 0
        assert json.loads(capsys.readouterr().out)["workload"]["model"] == model
    assert main(["--set", "workload.data=diagonal", "workload.model=resnet8"]) == 2
    assert capsys.readouterr().err.startswith("error: --model resnet8: takes images")


class Plain(nn.Module):
    """beta is the weight itself."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.zeros(dimension))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.beta


def plain(*, dimension: int) -> nn.Module:
    return Plain(dimension)


def of_images(*, num_classes: int, channels: int, image_size: int) -> nn.Module:
    return nn.Linear(channels * image_size**2, num_classes)


def test_a_model_of_ones_own_is_told_the_dimension() -> None:
    spec = WorkloadSpec(data="diagonal", model="tests.workloads.test_pairing:plain")
    assert prepare(spec).num_classes is None
    *_, last = train(TrialSpec(workload=spec, epochs=1), device=torch.device("cpu"))
    assert 0 < last.validation_accuracy < 1
    with pytest.raises(InvalidInput, match=r"of_images: needs 'num_classes', and there is dimension, num_outputs, "):
        prepare(WorkloadSpec(data="diagonal", model="tests.workloads.test_pairing:of_images"))
