"""Diagonal linear networks through the whole service: the mathematics exactly, and every variant."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from search_spaces import SPACES
from tests.command import ALONE, NUM_ALONE, check_whole, mlflow_runs, search
from tests.tracked import load_function
from tuner.core.metrics import EpochMetrics, is_finished
from tuner.core.serialization import with_settings
from tuner.core.store import Store
from tuner.core.trial_spec import OptimizerSpec, TrialSpec, WorkloadSpec
from tuner.diagnose.__main__ import main as diagnose
from tuner.optimizers.hyperparameters import Hyperparameters
from tuner.order import Batch, shuffled_batches
from tuner.search.__main__ import main
from tuner.study.results import load_search
from tuner.train import train
from tuner.train.final_weights import score_on_test
from tuner.train.train_state import TrainState
from tuner.train.trainer import Trainer
from tuner.workloads.data import Data, load_data
from tuner.workloads.diagonal import Diagonal, DiagonalSquares
from tuner.workloads.population import make_population
from tuner.workloads.splits import SealedSplit

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
WORKLOAD = WorkloadSpec(data="diagonal", model="diagonal")
POPULATION = make_population()
PLAIN = with_settings(OptimizerSpec(), {"rule": "sgd", "momentum.value": 0.0, "decay.weight": 0.0})
BATCHES = shuffled_batches(6400, 64, seed=3, epoch=0)


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data(WORKLOAD, CPU, sealed=False)


def network(data: Data, model: str = "diagonal", precision: str = "float64") -> TrainState:
    workload = dataclasses.replace(WORKLOAD, model=model)
    spec = TrialSpec(workload=workload, optimizer=PLAIN, precision=precision)  # type: ignore[arg-type]
    return TrainState(spec, data, CPU, num_steps=len(BATCHES))


def step(net: TrainState, number: int, lr: float) -> Tensor:
    """Takes the step, and returns the mean over the batch of r x before it, (d,)."""
    ((inputs, labels),) = net.data.train_batches([BATCHES[number]])
    with torch.no_grad():
        residuals = net.model(inputs.double()) - labels
    net.step(number, BATCHES[number], inputs, labels, Hyperparameters(lr=lr, momentum=0.0, p=2.0))
    gradient: Tensor = (residuals[:, None] * inputs.double()).mean(0)
    return gradient


def weights(net: TrainState) -> tuple[Tensor, Tensor]:
    assert isinstance(net.model, Diagonal | DiagonalSquares)
    return net.model.u.detach().clone(), net.model.v.detach().clone()


def beta(net: TrainState) -> Tensor:
    assert isinstance(net.model, Diagonal | DiagonalSquares)
    learnt: Tensor = net.model.beta().detach()
    return learnt


def test_samples_have_the_law_of_the_problem(data: Data) -> None:
    """A mean of n squares is off by sqrt(2/n) of itself: five times that is allowed."""
    batches = [batch for epoch in range(2) for batch in shuffled_batches(6400, 64, seed=0, epoch=epoch)]
    inputs, labels = (torch.cat(parts) for parts in zip(*data.train_batches(batches), strict=True))
    squares = inputs.double().square().mean(0) * 400 / torch.from_numpy(POPULATION.lam)
    assert float((squares - 1).abs().max()) < 5 * (2 / len(inputs)) ** 0.5
    assert float(squares.mean()) == pytest.approx(1, abs=5 * (2 / inputs.numel()) ** 0.5)
    assert float(inputs.double().mean()) == pytest.approx(0, abs=5 * (len(inputs) * 400 * 400) ** -0.5)
    assert float(labels.square().mean()) == pytest.approx(POPULATION.label_square, rel=5 * (2 / len(inputs)) ** 0.5)
    torch.testing.assert_close(labels, inputs.double() @ torch.from_numpy(POPULATION.target), rtol=0, atol=1e-14)
    assert inputs.dtype == torch.float32 and labels.dtype == torch.float64


def test_a_batch_is_its_seed_and_nothing_else(data: Data) -> None:
    first = list(data.train_batches(BATCHES[:3]))
    torch.rand(1)
    nowhere = torch.zeros(64, dtype=torch.int64)
    again = list(data.train_batches([Batch(nowhere, batch.seed) for batch in BATCHES[2::-1]]))
    for (inputs, labels), (inputs_again, labels_again) in zip(first, reversed(again), strict=True):
        assert torch.equal(inputs, inputs_again) and torch.equal(labels, labels_again)
    assert not torch.equal(first[0][0], first[1][0]), "each batch is fresh"


def test_parts_are_the_bits_of_the_whole(data: Data) -> None:
    ((inputs, labels),) = data.train_batches(BATCHES[:1])
    for cuts in ((0, 32, 64), (0, 7, 8, 64)):
        parts = [next(data.train_batches(BATCHES[:1], slice(*ends))) for ends in itertools.pairwise(cuts)]
        assert torch.equal(torch.cat([x for x, _ in parts]), inputs)
        assert torch.equal(torch.cat([y for _, y in parts]), labels)
    whole = list(data.evaluation_batches("test"))
    parts = [*data.evaluation_batches("test", slice(0, 150)), *data.evaluation_batches("test", slice(150, None))]
    for place in (0, 1):
        assert torch.equal(torch.cat([part[place] for part in parts]), torch.cat([part[place] for part in whole]))


def test_there_is_no_training_set_and_the_test_split_is_sealed(data: Data) -> None:
    with pytest.raises(ValueError, match="drawn batch by batch"):
        next(iter(data.evaluation_batches("train")))
    with pytest.raises(SealedSplit):
        next(iter(load_data(WORKLOAD, CPU).evaluation_batches("test")))


@pytest.mark.parametrize("model", ["diagonal", "diagonal-squares"])
def test_an_evaluation_is_the_risk_of_the_population(data: Data, model: str) -> None:
    net = network(data, model)
    loss, accuracy = net.evaluate("validation")
    assert loss == pytest.approx(POPULATION.risk(np.zeros(400)), rel=1e-13) and accuracy == pytest.approx(0, abs=1e-13)
    for number in range(20):
        step(net, number, lr=5.0)
        expected = POPULATION.risk(beta(net).numpy())
        loss, accuracy = net.evaluate("validation")
        assert loss == pytest.approx(expected, rel=1e-12)
        assert accuracy == pytest.approx(1 - 2 * expected / POPULATION.label_square, rel=1e-12)
    assert accuracy > 0.2
    assert net.evaluate("test") == (loss, accuracy)


def test_it_is_the_mean_over_fresh_samples(data: Data) -> None:
    """r is Gaussian of variance 2 P: the mean of r^2/2 over n samples is off by P sqrt(2/n)."""
    net = network(data)
    for number in range(10):
        step(net, number, lr=5.0)
    batches = [batch for epoch in range(3) for batch in shuffled_batches(6400, 64, seed=9, epoch=epoch)]
    with torch.no_grad():
        residuals = torch.cat([net.model(x.double()) - y for x, y in data.train_batches(batches)])
    sampled, (loss, _) = float(residuals.square().mean()) / 2, net.evaluate("validation")
    assert sampled == pytest.approx(loss, rel=4 * (2 / len(residuals)) ** 0.5)


def test_a_step_of_sgd_shrinks_q_by_the_square_of_the_gradient(data: Data) -> None:
    """q = u^2 - v^2 becomes q (1 - gamma^2 g^2) exactly, g the mean of r x over the batch."""
    net, shrunk = network(data), 0.0
    for number in range(30):
        u, v = weights(net)
        g = step(net, number, lr=40.0)
        factors = 1 - (40.0 * g) ** 2
        q = torch.sub(*(w.square() for w in weights(net)))
        torch.testing.assert_close(q, (u**2 - v**2) * factors, rtol=1e-12, atol=1e-14)
        shrunk = max(shrunk, float((1 - factors).max()))
    assert shrunk > 0.05, "what is measured is not rounding"


def test_squares_at_a_learning_rate_are_the_product_at_twice_it(data: Data) -> None:
    product, squares = network(data), network(data, "diagonal-squares")
    for number in range(100):
        step(product, number, lr=20.0)
        step(squares, number, lr=10.0)
        u, v = weights(squares)
        for ours, theirs in zip((u + v, u - v), weights(product), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    assert float(beta(product).abs().max()) > 0.3
    torch.testing.assert_close(beta(squares), beta(product), rtol=1e-10, atol=1e-12)


def small(variant: str, **changes: Any) -> TrialSpec:
    optimizer = with_settings(OptimizerSpec(), SPACES[variant].default_settings())
    return dataclasses.replace(TrialSpec(workload=WORKLOAD, optimizer=optimizer, epochs=2), **changes)


def numbers(history: list[EpochMetrics]) -> list[dict[str, Any]]:
    timed = ("seconds", "images_per_second", "finished_at")
    return [
        {name: value for name, value in dataclasses.asdict(metrics).items() if not name.endswith(timed)}
        for metrics in history
    ]


@pytest.mark.parametrize("variant", sorted(SPACES))
def test_every_variant_trains_and_goes_on_with_the_same_bits(variant: str, tmp_path: Path) -> None:
    spec = small(variant)
    whole = Trainer(spec, CPU)
    while not is_finished(spec, whole.history):
        whole.train_to_evaluation()
    assert not whole.history[-1].diverged
    assert whole.history[-1].validation_loss < POPULATION.risk(np.zeros(400))
    assert 0 < whole.history[-1].validation_accuracy < 1

    def kept() -> Iterator[EpochMetrics]:
        return train(spec, store=Store(tmp_path), checkpoint_seconds=0, device=CPU, keep_weights=True)

    next(kept())
    torch.manual_seed(1)
    assert numbers(list(kept())) == numbers(whole.history)
    last = whole.history[-1]
    score = score_on_test(spec, Store(tmp_path), CPU)
    assert (score.loss, score.accuracy) == (last.validation_loss, last.validation_accuracy)


def test_a_divergence_is_one_and_scores_nothing() -> None:
    spec = small("sgd", optimizer=with_settings(PLAIN, {"lr.peak": 1e5, "lr.schedule": "constant"}))
    *_, last = train(spec, device=CPU)
    assert last.diverged and last.validation_accuracy == last.train_accuracy == 0


def test_half_precision_and_curvature_go_through() -> None:
    specs = (small("sgdm", precision=precision, curvature=1) for precision in ("float32", "bfloat16"))
    whole, half = (list(train(spec, device=CPU)) for spec in specs)
    assert half[-1].validation_accuracy == pytest.approx(whole[-1].validation_accuracy, abs=0.01)
    # The population's Hessian has eigenvalues of about lambda (u^2 + v^2)/d; 256 samples in 400 dimensions spread them.
    assert whole[-1].curvature_top is not None and 0.001 < whole[-1].curvature_top < 0.5
    assert whole[-1].curvature_mean is not None and 0 < whole[-1].curvature_mean < whole[-1].curvature_top


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A small search with no flag that says more than the workload of what is trained."""
    folder = tmp_path_factory.mktemp("diagonal")
    small_one = ["--name", "a", "--epochs", "2", "--targets", ".1", ".3", *ALONE]
    ran = search(folder, "--workload", "diagonal", *small_one, "--confirm-seeds", "2")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return folder, ran


@pytest.mark.slow
def test_a_search_is_whole_and_shows_its_score_under_its_name(
    searched: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, ran = searched
    check_whole(folder, {"sgdm": NUM_ALONE})
    report = (folder / "runs/a/report.md").read_text()
    assert "diagonal on diagonal" in report and "Validation R^2 against" in report and "| test R^2 |" in report
    assert "R^2, which files and MLflow call accuracy" in report and report.count("accuracy") == 1
    assert ", best R^2 0." in ran.stdout and "accuracy" not in ran.stdout
    assert "Data: diagonal; train is drawn afresh for every batch" in ran.stdout
    assert "could not be saved" not in ran.stdout
    frame = load_search("a", output=str(folder / "runs")).trials()
    confirmed = frame[frame.confirms.notna()]
    assert len(confirmed) == 2 and (confirmed["test/accuracy"] > 0).all()


@pytest.mark.slow
def test_mlflow_has_the_data_and_the_winning_model(
    searched: tuple[Path, subprocess.CompletedProcess[str]], data: Data
) -> None:
    _, runs = mlflow_runs(searched[0])
    parent = next(run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    assert parent.data.params["model"] == "diagonal"
    for run in runs:
        if run is not parent:
            assert run.inputs is not None
            dataset = run.inputs.dataset_inputs[0].dataset
            assert dataset.name == "diagonal" and "tuner.theory.problem" in dataset.source
            assert data.digest in str(dataset.profile) and "num_classes" not in str(dataset.profile)
    function = load_function(f"sqlite:///{searched[0]}/mlflow.db", parent.data.tags["winning_model"])
    inputs = np.eye(400, dtype=np.float32)
    learnt = np.concatenate([function.predict(part) for part in (inputs[:1], inputs[1:])]).astype(np.float64)
    assert learnt.shape == (400,)
    scores = [run.data.metrics.get("test/accuracy") for run in runs if run.data.tags.get("phase") == "confirm"]
    score = 1 - 2 * POPULATION.risk(learnt) / POPULATION.label_square
    assert any(score == pytest.approx(known, rel=1e-5) for known in scores)


@pytest.mark.slow
def test_its_networks_cannot_be_diagnosed(
    searched: tuple[Path, subprocess.CompletedProcess[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(searched[0])
    assert diagnose(["a/sgdm/confirm-1"]) == 2
    assert capsys.readouterr() == (
        "",
        "error: a/sgdm/confirm-1: a diagnosis needs the images of a workload that is known by name, and diagonal is "
        "none\n",
    )


def test_its_plan_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--workload", "diagonal", "--variants", "all", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "diagonal, diagonal: 21 variants, 10 epochs per training" in said
    assert "6400 train, 400 validation, 400 test" in said
    assert not list(tmp_path.iterdir())
