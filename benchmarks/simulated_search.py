"""Searches whose truth is known: every training is a formula, everything else is as in a real search.

    rate      = speed 2^(-((log10 lr - log10 lr_best) / width)^2 + noise z),      z ~ N(0, 1) by the training's seed
    accuracy  = chance + (top - chance) (1 - exp(-rate epoch)) + jitter z_epoch
    diverges  where lr > lr_limit (1 + z / 4)

Settings are drawn as in the random arm of a search.  The rungs stop trials as in a search, and the winners are
confirmed by fresh seeds.  In place of TPE, the model arm draws around the best trial so far.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna

from search_spaces import SPACES, Variant
from tuner.core.metrics import EpochMetrics, FinalScore
from tuner.core.search_spec import SearchSpec
from tuner.core.serialization import flatten, with_settings
from tuner.core.trial_spec import OptimizerSpec, TrialSpec
from tuner.core.variants import from_unit
from tuner.study import search_folder, trial_folder
from tuner.study.objectives import OBJECTIVES, evaluate
from tuner.study.optuna_study import STATUSES, open_storage, study_name, trial_name
from tuner.study.results import Point, Search, TrialRecord
from tuner.study.sampler import num_random, sobol_point
from tuner.study.successive_halving import SuccessiveHalving

STEPS_PER_EPOCH = 16
STARTED_AT = 1.75e9
POINTS: tuple[Point, ...] = ("best", "default")


@dataclass(frozen=True, kw_only=True, slots=True)
class Truth:
    """The parameters of the formula for one variant."""

    speed: float = 0.6
    """Rate at the best learning rate, per epoch."""
    lr_best: float = 0.1
    width: float = 1.0
    """Distance, in decades of the learning rate, from ``lr_best`` to half the rate."""
    noise: float = 0.15
    """Standard deviation of the rate over seeds, in doublings."""
    top: float = 0.99
    jitter: float = 0.004
    lr_limit: float = math.inf
    seconds_per_step: float = 0.025


def curve(spec: TrialSpec, truth: Truth) -> list[EpochMetrics]:
    """The epochs of a training up to its end or divergence."""
    generator = np.random.default_rng((spec.seed, STEPS_PER_EPOCH))
    z, *jitters = generator.normal(size=spec.epochs + 1).tolist()
    lr = spec.optimizer.lr.peak
    rate = truth.speed * 2 ** (-(((math.log10(lr / truth.lr_best)) / truth.width) ** 2) + truth.noise * z)
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
    assert spec.name is not None
    folder = (output or Path("runs")).absolute() / spec.name
    program = search_folder.Process(
        STARTED_AT, STARTED_AT + 60, {"python": "3.11", "torch": "2.15"}, "2 cores, simulated", 2
    )
    search = Search(spec, "simulated", chosen, folder, {}, (program,), "a formula")
    for index, variant in enumerate(chosen):
        _explore(search, variant, truths[variant.name], np.random.default_rng((spec.seed, index)))
    for variant in chosen:
        _confirm(search, variant.name, truths[variant.name])
    return _write(search, program) if output else search


def _explore(search: Search, variant: Variant, truth: Truth, generator: np.random.Generator) -> None:
    spec, rungs = search.spec, SuccessiveHalving()
    sobol_seed = int(generator.integers(2**31))
    for number in range(spec.trials):
        best = search.best(variant.name)
        point = sobol_point(len(variant.searched), number, sobol_seed)
        if variant.when:
            point = generator.random(len(variant.searched))
        names = list(variant.searched)
        drawn = {name: from_unit(variant.searched[name], float(u)) for name, u in zip(names, point, strict=True)}
        arm = "random" if number < num_random(spec.trials) else "model"
        if arm == "model" and best is not None and "lr.peak" in drawn:
            low, high = variant.searched["lr.peak"].low, variant.searched["lr.peak"].high  # type: ignore[attr-defined]
            nearby = best.spec.optimizer.lr.peak * 10 ** generator.normal(scale=0.3)
            drawn["lr.peak"] = float(min(max(nearby, low), high))
        settings = {name: value for name, value in drawn.items() if variant.active(name, drawn)}
        trial_spec = spec.trial_spec(with_settings(OptimizerSpec(), {**variant.fixed, **settings}), number)
        record = TrialRecord(trial_name(variant.name, number), variant.name, number, trial_spec, arm=arm)
        record.status = "finished"
        for metrics in curve(trial_spec, truth):
            record.history.append(metrics)
            share = metrics.gradient_evaluations / metrics.budget
            if metrics.diverged:
                record.status = "diverged"
            elif (
                spec.early_stopping
                and not rungs.should_continue(record.name, share, metrics.validation_accuracy)
                and metrics.validation_accuracy < spec.training.targets[-1]
            ):
                record.status = "stopped"
                break
        search.records[record.name] = record


def _confirm(search: Search, variant: str, truth: Truth) -> None:
    made: dict[TrialSpec, TrialRecord] = {}
    for point in POINTS:
        for spec in search.wanted(variant, point):
            if spec not in made:
                number = len(made) + 1
                name = trial_folder.confirmed_name(variant, number)
                history = curve(spec, truth)
                diverged = history[-1].diverged
                accuracy = history[-1].validation_accuracy
                made[spec] = TrialRecord(
                    name,
                    variant,
                    number,
                    spec,
                    "confirm",
                    "diverged" if diverged else "finished",
                    history,
                    test=None if diverged else FinalScore(-math.log(accuracy), accuracy - 0.002, "formula"),
                )
    search.records |= {record.name: record for record in made.values()}


def _write(search: Search, program: search_folder.Process) -> Search:
    folder = search.folder
    folder.mkdir(parents=True)
    spec = dataclasses.replace(search.spec, output=str(folder.parent))
    search_folder.save(folder, spec, search.search_id, {}, splits=search.splits, process=program)
    for record in search.records.values():
        place = folder / record.folder_name
        trial_folder.write_spec(place, record.spec)
        for metrics in record.history:
            trial_folder.append_epoch(place, metrics)
        if record.test:
            trial_folder.write_test(place, record.test)
    storage = open_storage(f"sqlite:///{folder / 'optuna.db'}")
    for variant in search.variants:
        study = optuna.create_study(
            storage=storage,
            study_name=study_name(folder.name, variant.name),
            directions=[goal.direction for goal in OBJECTIVES[search.spec.objective]],
        )
        study.add_trials([_frozen(search, variant, record) for record in search.trials_of(variant.name)])
    search.studies = {
        variant.name: optuna.load_study(study_name=study_name(folder.name, variant.name), storage=storage)
        for variant in search.variants
    }
    return search


def _frozen(search: Search, variant: Variant, record: TrialRecord) -> optuna.trial.FrozenTrial:
    settings = flatten(record.spec.optimizer)
    active = {name: settings[name] for name in variant.searched if variant.active(name, settings)}  # type: ignore[arg-type]
    reported = {
        metrics.gradient_evaluations: evaluate(
            search.spec.objective, record.history[: i + 1], search.spec.training.targets
        )[0]
        for i, metrics in enumerate(record.history)
    }
    state = STATUSES[record.status]
    complete = state == optuna.trial.TrialState.COMPLETE
    return optuna.trial.create_trial(
        state=state,
        params=active,
        distributions={name: variant.searched[name] for name in active},
        intermediate_values=reported if len(OBJECTIVES[search.spec.objective]) == 1 else {},
        user_attrs={"status": record.status, "arm": record.arm},
        values=evaluate(search.spec.objective, record.history, search.spec.training.targets) if complete else None,
    )
