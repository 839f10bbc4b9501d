"""Do trainings fail in the same layers, and does retraining those layers help?  Several seeds per variant.

python -m benchmarks.repair                                              ResNet-8 on digits
python -m benchmarks.repair --set workload.data=/data/images workload.model=resnet20 epochs=10

Every variant trains at its default point, once per seed.  A diagnosis ranks the layer groups on the validation split.
The groups that it names are retrained, beside three controls.  The results are counted on the test split.  A training
that ended is kept under ``--folder`` and not repeated.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import statistics
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from joblib import Parallel, delayed
from scipy.special import stdtrit

from benchmarks.recording import conditions, parser, record, show
from search_spaces import SPACES
from tuner.core.errors import InvalidInput
from tuner.core.metrics import is_finished
from tuner.core.serialization import digest, with_settings
from tuner.core.trial_spec import OptimizerSpec, TrialSpec
from tuner.diagnose.agreement import agreement
from tuner.diagnose.attribution import DEFAULT_SCORE, SCORES, Diagnosis, Score, diagnose
from tuner.diagnose.layer_groups import layer_groups, num_named
from tuner.diagnose.repair import RepairSettings, repairs
from tuner.train.__main__ import _with_settings
from tuner.train.final_weights import trained_network
from tuner.train.trainer import Trainer

CPU = torch.device("cpu")
Found = Mapping[str, Any]
"""Figures of one training: accuracy, rankings by score, and fixed, broken and net of the repair and its controls."""


def main() -> int:
    made = parser(__doc__, "repair")
    made.add_argument("--variants", nargs="+", default=["sgdm", "adamw", "critical", "lpsgdm"])
    made.add_argument("--seeds", type=int, default=5)
    made.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="NAME=VALUE", help="settings, as in tuner.train"
    )
    made.add_argument("--repair-epochs", type=int, default=RepairSettings().epochs)
    made.add_argument("--repair-lr", type=float, default=RepairSettings().lr)
    made.add_argument("--folder", type=Path, default=Path("repairs"), help="folder of each training's figures")
    made.add_argument("--jobs", type=int, default=1)
    options = made.parse_args()
    before = conditions()
    settings = RepairSettings(options.repair_lr, options.repair_epochs)
    base = _with_settings(TrialSpec(), options.set)
    specs = {
        (variant, seed): dataclasses.replace(
            base, optimizer=with_settings(OptimizerSpec(), SPACES[variant].default_settings()), seed=seed
        )
        for seed, variant in itertools.product(range(options.seeds), options.variants)
    }
    found = Parallel(n_jobs=options.jobs)(delayed(_found)(spec, settings, options.folder) for spec in specs.values())
    by_run = {key: one for key, one in zip(specs, found, strict=True) if one}
    _show_agreement(by_run, options.variants)
    _show_repairs(by_run, options.variants)
    record(options.out, before, {f"{variant} {seed}": one for (variant, seed), one in by_run.items()})
    return 0


def _found(spec: TrialSpec, settings: RepairSettings, folder: Path) -> Found | None:
    """Figures of one training; None if it diverged or misclassified nothing."""
    kept = folder / f"{digest(spec)}-{digest(settings)}.json"
    if kept.exists():
        known: Found | None = json.loads(kept.read_text())
        return known
    torch.set_num_threads(1)
    found = _measured(spec, settings)
    folder.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(found) + "\n")
    return found


def _measured(spec: TrialSpec, settings: RepairSettings) -> Found | None:
    training = Trainer(spec, CPU)
    groups = layer_groups(training.network.model)
    untrained = diagnose(training.network, groups)
    while not is_finished(spec, training.history):
        metrics = training.train_to_evaluation()
    if metrics.diverged:
        return None
    state = training.network.evaluated_state()
    network = trained_network(spec, state, training.data, CPU)
    try:
        diagnosis = diagnose(network, groups)
    except InvalidInput:
        return None
    chosen = diagnosis.top(num_named(len(groups)))
    ranking = [scores.group for scores in diagnosis.ranking()]
    outcomes = repairs(network, groups, chosen, ranking, dataclasses.replace(settings, seed=spec.seed))
    return {
        "validation": metrics.validation_accuracy,
        "errors": diagnosis.num_errors,
        "images": outcomes[0][1].num_images,
        "rankings": _rankings(diagnosis),
        "untrained": _rankings(untrained),
        "repairs": {
            one.name: {
                "parameters": one.parameter_share,
                "cost": one.cost,
                "epoch": one.epoch,
                "fixed": outcome.num_fixed,
                "broken": outcome.num_broken,
                "net": outcome.net,
            }
            for one, outcome in outcomes
        },
    }


def _rankings(diagnosis: Diagnosis) -> dict[Score, list[str]]:
    return {score: [group.name for group in diagnosis.top(len(diagnosis.groups), score)] for score in SCORES}


def _show_agreement(found: Mapping[tuple[str, int], Found], variants: Sequence[str]) -> None:
    lines = []
    for score in SCORES:
        rankings = {key: one["rankings"][score] for key, one in found.items()}
        number = num_named(len(next(iter(rankings.values()))))
        keys = list(rankings)
        everything = agreement(list(rankings.values()), number)
        within = [pair.shared for (a, b), pair in everything.pairs.items() if keys[a][0] == keys[b][0]]
        across = [pair.shared for (a, b), pair in everything.pairs.items() if keys[a][0] != keys[b][0]]
        before = [(one["rankings"][score][:number], one["untrained"][score][:number]) for one in found.values()]
        untrained = [len({*ours} & {*initial}) for ours, initial in before]
        by_variant = ([g for key in keys if key[0] == variant for g in rankings[key][:number]] for variant in variants)
        named = [[group for group, _ in Counter(groups).most_common(number)] for groups in by_variant]
        lines.append(
            [
                score + (" *" if score == DEFAULT_SCORE else ""),
                f"{statistics.mean(within):.2f}" if within else "",
                f"{statistics.mean(across):.2f}" if across else "",
                f"{statistics.mean(untrained):.2f}",
                f"{everything.expected_shared:.2f}",
                f"{everything.p_value:.2g}",
                "; ".join(" ".join(names) for names in named),
            ]
        )
    columns = [
        "score",
        "within a variant",
        "across variants",
        "with its initial weights",
        "by chance",
        "p",
        f"most named: {'; '.join(variants)}",
    ]
    show(f"Groups that two trainings both name, of {number} named by each", columns, lines)


def _show_repairs(found: Mapping[tuple[str, int], Found], variants: Sequence[str]) -> None:
    lines = []
    by_variant = {variant: [one for (name, _), one in found.items() if name == variant] for variant in variants}
    for variant, ones in {**by_variant, "together": list(found.values())}.items():
        for name in ones[0]["repairs"] if ones else ():
            of = [one["repairs"][name] for one in ones]
            fixed, broken = (statistics.mean(each[what] for each in of) for what in ("fixed", "broken"))
            parameters, cost = (statistics.mean(each[what] for each in of) for what in ("parameters", "cost"))
            shares = [f"{parameters:.0%}", f"{cost:.1f}"]
            nets = [each["net"] for each in of]
            less = [each["net"] - one["repairs"]["repair"]["net"] for each, one in zip(of, ones, strict=True)]
            apart = "" if name == "repair" else _interval(less)
            lines.append([variant, name, *shares, f"{fixed:.1f}", f"{broken:.1f}", _interval(nets), apart])
    columns = ["variant", "retrained", "parameters", "cost", "fixed", "broken", "net", "net, less the repair's"]
    sizes = next(iter(found.values()))
    accuracy = statistics.mean(one["validation"] for one in found.values())
    show(
        f"{sizes['images']:,} test images; validation accuracy before: {accuracy:.1%}; cost in epochs; means, 95% by t",
        columns,
        lines,
    )


def _interval(values: Sequence[float]) -> str:
    """The mean and its 95% interval by Student's t; for one value only the mean."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:+.1f}"
    reach = float(stdtrit(len(values) - 1, 0.975)) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:+.1f} [{mean - reach:+.1f}, {mean + reach:+.1f}]"


if __name__ == "__main__":
    sys.exit(main())
