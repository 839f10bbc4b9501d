"""The workload diagonal as numbers: the theory's problem, known without torch."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from tuner.core.errors import InvalidInput
from tuner.core.trial_spec import WorkloadSpec
from tuner.theory.problem import standard_problem
from tuner.workloads.check import check_workload, prepare
from tuner.workloads.data import load_data
from tuner.workloads.population import DIMENSION, make_population

SPEC = WorkloadSpec(data="diagonal", model="diagonal")


def test_its_risk_is_that_of_the_problem() -> None:
    problem, population = standard_problem(), make_population()
    beta = np.linspace(-2, 2, 20)
    assert population.risk(beta[problem.types_of(DIMENSION)]) == pytest.approx(problem.risk(beta), rel=1e-13)
    start = population.u * population.v
    assert population.risk(start) == pytest.approx(problem.first_risk, rel=1e-13)
    assert population.label_square == pytest.approx(2 * population.risk(np.zeros(DIMENSION)), rel=1e-13)
    assert population.risk(population.target) == 0


def test_the_digest_follows_the_problem() -> None:
    digests = {make_population(dimension).digest for dimension in (20, 40, DIMENSION)}
    assert len(digests) == 3 and make_population().digest in digests
    with pytest.raises(InvalidInput, match="too few for 20 types"):
        make_population(19)


def test_a_driver_knows_it_without_torch_and_as_it_is_loaded() -> None:
    check_workload(SPEC)
    prepared, data = prepare(SPEC), load_data(SPEC, torch.device("cpu"))
    assert (prepared.digest, prepared.sizes) == (data.digest, data.sizes)
    assert prepared.sizes == {"train": 6400, "validation": 400, "test": 400} and prepared.num_classes is None
    assert prepared.note == data.splits_note and "R^2" in prepared.note
    code = (
        "import sys; from tuner.core.trial_spec import WorkloadSpec;"
        "from tuner.workloads.check import check_workload, prepare;"
        "spec = WorkloadSpec(data='diagonal', model='diagonal'); check_workload(spec); prepare(spec);"
        "print([name for name in ('torch', 'torchvision', 'scipy') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_a_batch_beyond_an_epoch_is_refused() -> None:
    with pytest.raises(InvalidInput, match="--batch-size 6401: must be at most 6400"):
        prepare(WorkloadSpec(data="diagonal", model="diagonal", batch_size=6401))
