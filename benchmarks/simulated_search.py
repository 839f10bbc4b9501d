"""Searches whose truth is known: every training is a formula, everything else is as in a real search.

    rate      = speed 2^(-((log10 lr - log10 lr_best) / width)^2 - sum_s ((s - s_best) / width_s)^2 + noise z)
    z         = sqrt(1 - own) z_seed + sqrt(own) z_training,    z_seed, z_training ~ N(0, 1)
    accuracy  = chance + (top - chance) (1 - exp(-rate epoch)) + jitter z_epoch
    diverges  where lr > lr_limit (1 + z / 4)

The scheduler and the studies are those of a search.  One training runs at a time.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from zlib import crc32

import numpy as np
import optuna
from optuna.storages import InMemoryStorage

from search_spaces import SPACES, Variant
from tuner.core.metrics import EpochMetrics, FinalScore, is_finished
from tuner.core.search_spec import SearchSpec
from tuner.core.serialization import flatten
from tuner.core.trial_spec import OptimizerSpec, TrialSpec
from tuner.study import search_folder, trial_folder
from tuner.study.optuna_study import open_storage, open_studies, study_name
from tuner.study.results import Search
from tuner.study.scheduler import TrialScheduler
from tuner.study.trial_record import TrialRecord

STEPS_PER_EPOCH = 16
STARTED_AT = 1.75e9


@dataclass(frozen=True, kw_only=True, slots=True)
class Truth:
    """The parameters of the formula for one variant."""

    speed: float = 0.6
    """Rate at the best learning rate, per epoch."""
    lr_best: float = 0.1
    width: float = 1.0
    """Distance, in decades of the learning rate, from ``lr_best`` to half the rate."""
    others: tuple[tuple[str, float, float], ...] = ()
    """Further settings s that matter: name, best value, and the distance from it to half the rate."""
    noise: float = 0.15
    """Standard deviation of the rate over seeds, in doublings."""
    own: float = 0.0
    """Share of the noise's variance, in [0, 1], that is a training's own and not that of all trainings of its seed."""
    stream: int = 0
    """Number of a variant's own draws: with another one, equal settings and seeds have other noise of their own."""
    top: float = 0.99
    jitter: float = 0.004
    lr_limit: float = math.inf
    seconds_per_step: float = 0.025


def halvings(optimizer: OptimizerSpec, truth: Truth) -> float:
    """How often the rate with these settings is half that with the best ones, at least 0."""
    settings: dict[str, float] = flatten(optimizer)  # type: ignore[assignment]
    by_lr = (math.log10(optimizer.lr.peak / truth.lr_best) / truth.width) ** 2
    by_others: float = sum(((settings[name] - best) / width) ** 2 for name, best, width in truth.others)
    return by_lr + by_others


def curve(spec: TrialSpec, truth: Truth) -> list[EpochMetrics]:
    """The epochs of a training up to its end or divergence."""
    generator = np.random.default_rng((spec.seed, STEPS_PER_EPOCH))
    z, *jitters = generator.normal(size=spec.epochs + 1).tolist()
    if truth.own:
        settings = crc32(repr(spec.optimizer).encode())
        own = np.random.default_rng((spec.seed, STEPS_PER_EPOCH, settings, truth.stream + 1)).normal()
        z = math.sqrt(1 - truth.own) * z + math.sqrt(truth.own) * own
    lr = spec.optimizer.lr.peak
    rate = truth.speed * 2 ** (truth.noise * z - halvings(spec.optimizer, truth))
    history: list[EpochMetrics] = []
    for epoch, jitter in enumerate(jitters, start=1):
        accuracy = 0.1 + (truth.top - 0.1) * (1 - math.exp(-rate * epoch)) + truth.jitter * jitter
        diverged = lr > truth.lr_limit * (1 + z / 4)
        accuracy = 0.1 if diverged else min(max(accuracy, 0.0), 1.0)
        steps = STEPS_PER_EPOCH * epoch
        seconds = steps * truth.seconds_per_step * (1 + 0.02 * abs(jitter))
        history.append(
            EpochMetrics(
                epoch=epoch,
                gradient_evaluations=steps,
                steps=steps,
                budget=STEPS_PER_EPOCH * spec.epochs,
                train_loss=math.inf if diverged else -math.log(accuracy),
                train_accuracy=accuracy,
                validation_loss=math.inf if diverged else -math.log(max(accuracy - 0.01, 0.01)),
                validation_accuracy=accuracy,
                lr=lr * 0.5 * (1 + math.cos(math.pi * epoch / spec.epochs)),
                momentum=0.9,
                p=2 + 4 * 0.5 * (1 + math.cos(math.pi * epoch / spec.epochs)),
                seconds=seconds,
                evaluation_seconds=0.02 * epoch,
                compile_seconds=0.0,
                loading_seconds=0.0,
                images_per_second=64 / truth.seconds_per_step,
                diverged=diverged,
                finished_at=STARTED_AT + seconds,
                chance=0.1,
            )
        )
        if diverged:
            break
    return history


def simulate(
    spec: SearchSpec,
    truths: Mapping[str, Truth],
    *,
    variants: Sequence[Variant] | None = None,
    output: Path | None = None,
) -> Search:
    """A finished search of this spec; with ``output`` it is also written to ``<output>/<name>``."""
    chosen = tuple(variants or [SPACES[name] for name in spec.variants])
    name = spec.name or "simulated"
    with TemporaryDirectory() as temporary:
        folder = (output or Path(temporary)).absolute() / name
        folder.mkdir(parents=True)
        spec = dataclasses.replace(spec, name=name, output=str(folder.parent))
        program = search_folder.Process(
            STARTED_AT, STARTED_AT + 60, {"python": "3.11", "torch": "2.15"}, "2 cores, simulated", 2
        )
        storage = open_storage(f"sqlite:///{folder / 'optuna.db'}") if output else InMemoryStorage()
        studies = open_studies(spec, chosen, storage, search=name)
        made = {variant: study.study for variant, study in studies.items()}
        search = Search(
            spec, "simulated", chosen, folder, made, (program,), "a formula", steps_per_epoch=STEPS_PER_EPOCH
        )
        search_folder.save(folder, spec, search.search_id, {}, splits=search.splits, process=program)
        scheduler = TrialScheduler(search, studies)
        while (record := scheduler.next_trial()) is not None:
            _train(scheduler, record, truths[record.variant])
        if output:
            _write(search)
            search.studies = {
                variant: optuna.load_study(study_name=study_name(name, variant), storage=storage) for variant in studies
            }
    return search


def _train(scheduler: TrialScheduler, record: TrialRecord, truth: Truth) -> None:
    """Runs a training, confirmed run or reading of the test split to its end."""
    if record.phase == "test":
        run = scheduler.records[record.name.removesuffix("/test")]
        accuracy = run.history[-1].validation_accuracy
        run.test, record.status = FinalScore(-math.log(accuracy), accuracy - 0.002, "formula"), "finished"
        return
    study = scheduler.studies[record.variant]
    stopped = False
    for metrics in curve(record.spec, truth):
        record.history.append(metrics)
        done = is_finished(record.spec, record.history)
        record.history.pop()
        stopped = not done and not scheduler.should_continue(record.name, metrics)
        record.history.append(metrics)
        if record.is_trial:
            study.report(record.number, record.history)
        if done or stopped:
            break
    status = "diverged" if record.history[-1].diverged else "stopped" if stopped else "finished"
    if record.is_trial:
        study.tell(record.number, status, record.history)
    record.status = status
    scheduler.end(record)


def _write(search: Search) -> None:
    for record in search.records.values():
        place = search.folder / record.folder_name
        trial_folder.write_spec(place, record.spec)
        for metrics in record.history:
            trial_folder.append_epoch(place, metrics)
        if record.test:
            trial_folder.write_test(place, record.test)
