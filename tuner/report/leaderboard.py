"""The variants in order: by their confirmed runs, and by their trials alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np

from tuner.core.metrics import best_accuracy, target_label, time_to_target
from tuner.core.serialization import Setting, flatten
from tuner.report.comparison import Comparison, Time, compare, describe, ranking, times
from tuner.report.costs import WORDS, unit_of
from tuner.report.document import Table
from tuner.report.intervals import Interval
from tuner.report.verdict import in_words, random_settings, standing
from tuner.study.objectives import evaluate, rank
from tuner.study.results import Search
from tuner.study.trial_record import TrialRecord

ENDINGS = ("stopped", "diverged", "failed")


def leaderboard(search: Search) -> Table:
    """The variants, the winner of the race first: rounds, cost and test score of their confirmed runs."""
    if not times(search) and not search.race.rounds:
        return exploration(search)
    targets, goal = search.spec.training.targets, target_label(search.spec.training.targets[-1])
    made = {comparison.variant: comparison for comparison in compare(search)}
    unit = unit_of(search)
    costs = {(time.variant, time.target): time for time in times(search) if time.unit == unit}
    usual = statistics.mode(time.interval.level for time in costs.values()) if costs else 0.95
    raced = bool(search.race.rounds)
    rows = []
    for name in ranking(search):
        against = made.get(name)
        ratio = against.settings if against else None
        cells = [costs.get((name, target)) for target in targets]
        tested = _test_scores(search, name)
        rows.append(
            (
                name,
                *([standing(search, name), rounds_won(against)] if raced else []),
                *(_short(cell.interval, usual) if cell else "-" for cell in cells),
                f"{cells[-1].reached}/{cells[-1].num_seeds}" if cells[-1] else "-",
                _short(ratio, 0.95) if ratio else "-",
                _score(tested, len(search.confirmed(name))),
            )
        )
    columns = (
        "variant",
        *(["race", f"won against {search.baseline}"] if raced else []),
        *(f"{'seconds ' if unit == 'seconds' else ''}to {target_label(target)}%" for target in targets),
        "reached",
        f"ratio to {search.baseline}",
        f"test {search.score}",
    )
    note = []
    if raced:
        note.append(
            f"Rounds won are of those that ordered the variant and {search.baseline}; each tries "
            f"{random_settings(search)} in a round."
        )
    if costs:
        some = len(search.refined) < len(search.variants)
        whose = f"the variants that are left, and of {search.baseline}," if some else "all variants"
        note.append(
            f"The chosen settings of {whose} are trained again with {search.spec.confirm_seeds} fresh seeds. The "
            f"columns to a target give the median {WORDS[unit]} and an interval, at "
            f"{100 * usual:.0f}% unless another level is given. The ratio is of these settings' {WORDS[unit]} "
            f"to {goal}%, by equal seeds, at 95% unless another level is given. The test {search.score} is the mean "
            "(smallest–largest) at the end of training, over the runs that came to their end."
        )
    return Table("leaderboard", "Leaderboard", columns, tuple(rows), " ".join(note))


def rounds_won(made: Comparison | None) -> str:
    """Rounds won of those that ordered a variant and the baseline."""
    return f"{made.won} of {made.won + made.lost}" if made else "-"


def verdict(search: Search, variant: str, made: Comparison | None) -> str:
    """The verdict on a comparison with the baseline, in one to three words."""
    if variant == search.baseline:
        return "baseline"
    if made is None or not (made.won + made.lost or made.settings):
        return "nothing to compare"
    if made.verdict != "undecided":
        return in_words(search, made.verdict)
    return "undecided" if made.settings_verdict == "undecided" else f"settings {made.settings_verdict}"


def exploration(search: Search) -> Table:
    """The variants, ordered by the trial whose settings are chosen: what single trainings say."""
    targets = search.spec.training.targets
    rows = []
    for name in _explored(search):
        trials = search.trials_of(name)
        score = max((best_accuracy(record.history) for record in trials if record.history), default=None)
        best = search.best(name)
        rows.append(
            (
                name,
                "-" if score is None else f"{score:.4f}",
                *(_fastest(trials, target) for target in targets),
                *(str(sum(record.status == ending for record in trials)) for ending in ENDINGS),
                best.name if best else "-",
            )
        )
    columns = (
        "variant",
        f"best {search.score}",
        *(f"to {target_label(target)}%" for target in targets),
        *ENDINGS,
        "best trial",
    )
    note = (
        "Each trial has one seed, and the best of a variant's trials is mostly the luckiest. So this table finds "
        "settings; it does not compare variants. The best trial is the one whose settings are chosen: by the mean over "
        "further seeds where there are some. The columns to a target give epochs / gradient evaluations / seconds of "
        "training of the variant's fastest trial."
    )
    return Table("exploration", "Exploration", columns, tuple(rows), note)


def best_settings(search: Search, variant: str) -> dict[str, Setting]:
    """The searched settings that are active in a variant's best trial; empty if no trial finished."""
    best = search.best(variant)
    if best is None:
        return {}
    known = next(known for known in search.variants if known.name == variant)
    settings: dict[str, Setting] = flatten(best.spec.optimizer)  # type: ignore[assignment]
    return {name: settings[name] for name in known.searched if known.active(name, settings)}


def metrics_and_tags(search: Search) -> dict[str, tuple[dict[str, float], dict[str, str]]]:
    """Variant -> its row of the leaderboard as metrics and tags, with the same names in every search.

    An unknown value is NaN, a missed target inf.
    """
    made = {comparison.variant: comparison for comparison in compare(search)}
    goal = (search.spec.training.targets or (math.nan,))[-1]
    found = {(t.variant, t.unit): t for t in times(search) if t.target == goal}
    lines = {}
    for place, name in enumerate(ranking(search) if found or search.race.rounds else _explored(search), start=1):
        metrics = {"leaderboard/rank": float(place)}
        for unit in ("epochs", "gradient_evaluations", "seconds"):
            metrics[f"leaderboard/{unit}"] = _median(found.get((name, unit)))
        time, comparison = found.get((name, unit_of(search))), made.get(name)
        settings = comparison.settings if comparison else None
        metrics["leaderboard/rounds_won"] = float(comparison.won) if comparison else math.nan
        metrics["leaderboard/rounds_lost"] = float(comparison.lost) if comparison else math.nan
        metrics["leaderboard/evidence"] = comparison.evidence if comparison else math.nan
        metrics["leaderboard/reached"] = time.reached / time.num_seeds if time else math.nan
        metrics["leaderboard/ratio"] = settings.estimate if settings and settings.estimate > 0 else math.nan
        metrics["leaderboard/ratio_low"] = settings.low if settings else math.nan
        metrics["leaderboard/ratio_high"] = settings.high if settings and settings.high > 0 else math.nan
        tested = _test_scores(search, name)
        # A mean over the surviving runs alone would be too good.
        whole = tested and len(tested) == len(search.confirmed(name))
        metrics["test/accuracy"] = float(np.mean(tested)) if whole else math.nan
        tags = {
            "verdict": verdict(search, name, comparison),
            "race": standing(search, name) if search.race.rounds else "-",
            "cost": describe(time.interval, unit_of(search)) if time else "-",
            "target": "-" if math.isnan(goal) else f"{target_label(goal)}%",
            "baseline": search.baseline,
        }
        lines[name] = metrics, tags
    return lines


def _explored(search: Search) -> list[str]:
    """Variants by the objective of their best trial, then by the best score; those without a finished trial last."""

    def key(name: str) -> tuple[float, ...]:
        best = search.best(name)
        if best is None:
            return (1.0,)
        values = evaluate(search.spec.objective, best.history, search.spec.training.targets)
        scores = [best_accuracy(record.history) for record in search.trials_of(name) if record.history]
        return (0.0, *rank(search.spec.objective, values), -max(scores))

    return sorted((variant.name for variant in search.variants), key=key)


def _fastest(trials: Sequence[TrialRecord], target: float) -> str:
    # A trial that diverged later did not get there.
    steady = [record for record in trials if record.status not in ("diverged", "failed")]
    reached = [time for record in steady if (time := time_to_target(record.history, target))]
    if not reached:
        return "-"
    time = min(reached, key=lambda time: time.gradient_evaluations)
    return f"{time.epoch} / {time.gradient_evaluations:.0f} / {time.seconds:.1f}"


def _short(interval: Interval, usual: float) -> str:
    """An interval without its level if that is the usual one, so that the table fits a terminal."""
    return describe(interval).removesuffix(f" ({100 * usual:.0f}%)")


def _median(time: Time | None) -> float:
    return time.interval.estimate if time else math.nan


def _score(tested: Sequence[float], num_runs: int) -> str:
    """Mean and range, and the number of runs if some have no test score because they diverged or failed."""
    if not tested:
        return "-"
    shown = f"{np.mean(tested):.1%} ({100 * min(tested):.1f}–{100 * max(tested):.1f})"
    return shown if len(tested) == num_runs else f"{shown}, {len(tested)} of {num_runs}"


def _test_scores(search: Search, variant: str) -> list[float]:
    return [run.test.accuracy for run in search.confirmed(variant).values() if run.test]
