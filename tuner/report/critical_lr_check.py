"""Whether the predicted critical learning rate predicts which trials diverge.

The ratio is ``lr.peak`` over its prediction (:mod:`tuner.train.critical_lr`); above 1, a trial is predicted to
diverge.  If the prediction orders trials perfectly, all that diverged have larger ratios than all others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tuner.report.document import Picture, Section, Table
from tuner.report.figures import GREY, HEAVY, label, legend, numbers, panels, sample, styles
from tuner.report.scatter import ENDINGS
from tuner.study.results import Search
from tuner.study.trial_record import TrialRecord

OFFSETS = {"diverged": -0.2, "stopped": 0.0, "finished": 0.2}
"""How a trial ended -> its offset below the middle of its variant's row; a row has height 1."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How well a number tells trials that diverged from trials that did not."""

    auc: float
    """Probability that a trial that diverged has a larger number than one that did not; a tie counts one half."""
    spearman: float
    """Rank correlation of the number with divergence as 0 or 1, in [-1, 1]."""
    p_value: float
    """Two-sided p-value of "no correlation"."""


def agreement(fallen: Sequence[float], steady: Sequence[float]) -> Agreement | None:
    """How well the numbers tell ``fallen`` (diverged) from ``steady``; None if one is empty or all are equal.

    With U of Mann and Whitney, the AUC is U/(n m).  For given ranks, the rank correlation with 0 and 1 is an increasing
    linear function of U.  Its permutation test is therefore the Mann-Whitney test: exact for few trials without ties,
    else by the normal approximation.
    """
    from scipy.stats import mannwhitneyu, spearmanr  # slow to import

    if not fallen or not steady or len({*fallen, *steady}) == 1:
        return None
    test = mannwhitneyu(fallen, steady)
    correlation = spearmanr([*fallen, *steady], [1] * len(fallen) + [0] * len(steady))
    auc = float(test.statistic) / (len(fallen) * len(steady))
    return Agreement(auc, float(correlation.statistic), float(test.pvalue))


def critical_lr(search: Search) -> Section:
    """Predicted against observed divergence, over all trials that have a prediction; empty if none has."""
    trials = predicted(search)
    if not trials:
        return Section("Predicted critical learning rate")
    decided = [record for record in trials if record.status != "stopped"]
    sentences = [
        f"{len(trials)} trials have a prediction: {_count(trials, 'diverged')} diverged, "
        f"{_count(trials, 'finished')} finished without diverging, and {_count(trials, 'stopped')} had not diverged "
        "when they were stopped early. Those stopped early are counted separately and left out of the comparison of "
        "ratios.",
        *_correlations(decided),
        *_misses(search, trials),
    ]
    return Section("Predicted critical learning rate", tuple(sentences), tables=(_table(search), *_spared(search)))


def predicted(search: Search) -> list[TrialRecord]:
    """The trials of all variants that ended without failing and have a prediction."""
    return [
        record
        for variant in search.variants
        for record in search.trials_of(variant.name)
        if record.observed and record.history and record.history[-1].lr_over_critical is not None
    ]


def ratio(record: TrialRecord) -> float:
    """lr.peak over its prediction; the trial must have a prediction."""
    found = record.history[-1].lr_over_critical
    assert found is not None
    return found


def ratios(search: Search) -> Picture | None:
    """The ratio of each trial, one row per variant, marked by how the trial ended."""
    trials = predicted(search)
    if not trials:
        return None
    names = list(dict.fromkeys(record.variant for record in trials))
    looks = styles(variant.name for variant in search.variants)
    figure, (axes,) = panels([""], height=0.42 * len(names) + 0.5)
    axes.set_xscale("log")
    for y, name in enumerate(names):
        for status, (marker, hollow) in ENDINGS.items():
            chosen = [ratio(r) for r in trials if r.variant == name and r.status == status]
            axes.plot(
                chosen, [y + OFFSETS[status]] * len(chosen), color=looks[name][0], linestyle="none", marker=marker,
                markersize=5, alpha=0.8, markerfacecolor="none" if hollow else looks[name][0],
                rasterized=len(trials) > HEAVY,
            )  # fmt: skip
    axes.axvline(1, color=GREY, linewidth=1.2, linestyle="--")
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.45, -0.55)
    axes.grid(axis="y", visible=False)
    numbers(axes.xaxis, "log")
    label(figure, "lr.peak over the predicted critical one")
    legend(
        figure,
        [
            *(sample(status, marker=marker, hollow=hollow) for status, (marker, hollow) in ENDINGS.items()),
            sample("predicted limit", dashes="--"),
        ],
    )
    title = (
        "Each trial's lr.peak over the predicted critical one, one row per variant. Crosses diverged, and filled marks "
        "finished. Hollow marks were stopped early and had not diverged by then. A prediction that held would have the "
        "crosses, and no other marks, to the right of the dashed line at 1."
    )
    return Picture("critical_lr", title, figure)


def _correlations(trials: Sequence[TrialRecord]) -> list[str]:
    fallen = [record for record in trials if record.status == "diverged"]
    steady = [record for record in trials if record.status != "diverged"]
    if not fallen or not steady:
        what = "No trial diverged" if not fallen else "All trials diverged"
        return [f"{what}, so it is not known whether the ratio predicts divergence."] if trials else []
    found = agreement(*([ratio(record) for record in some] for some in (fallen, steady)))
    if found is None:
        return ["All trials have the same ratio, so it is not known whether the ratio predicts divergence."]
    by_lr = agreement(*([record.spec.optimizer.lr.peak for record in some] for some in (fallen, steady)))
    said = [
        f"A trial that diverged has a larger ratio than one that did not with probability {found.auc:.3f}"
        f"{f' ({by_lr.auc:.3f} for lr.peak itself)' if by_lr else ''}. Spearman's rank correlation of the ratio with "
        f"divergence is {found.spearman:.2f} (p {found.p_value:.1g}, Mann-Whitney).",
        f"The smallest ratio of a trial that diverged is {min(map(ratio, fallen)):.3g}. The largest ratio of a trial "
        f"that did not is {max(map(ratio, steady)):.3g}.",
    ]
    pairs = [(ratio(one), ratio(other)) for one in fallen for other in steady if one.variant == other.variant]
    if pairs and len({record.variant for record in trials}) > 1:
        inside = sum((one > other) + (one == other) / 2 for one, other in pairs) / len(pairs)
        said.append(
            f"Within a variant, the trial that diverged has the larger ratio in {inside:.1%} of {len(pairs)} pairs."
        )
    return said


def _misses(search: Search, trials: Sequence[TrialRecord]) -> list[str]:
    """For how many trials pruning by the prediction would have been wrong."""
    factor = search.spec.far_above_critical
    far = [record for record in trials if ratio(record) > factor]
    asked = "were pruned" if search.spec.prune_above_critical else "would have been pruned"
    if not far:
        return [f"No trial lay above {factor:g} times the predicted critical rate."]
    return [
        f"{len(far)} trials lay above {factor:g} times the predicted critical rate, where trials {asked}: "
        f"{_count(far, 'diverged')} diverged, {_count(far, 'stopped')} were stopped before diverging, and "
        f"{_count(far, 'finished')} finished, for which pruning would have been wrong."
    ]


def _table(search: Search) -> Table:
    rows = []
    trials = predicted(search)
    for variant in search.variants:
        own = [record for record in trials if record.variant == variant.name]
        if not own:
            continue
        cells = [
            str(
                sum((r.status == "diverged") == fell and (ratio(r) > 1) == above and r.status != "stopped" for r in own)
            )
            for above in (True, False)
            for fell in (True, False)
        ]
        found = agreement(*([ratio(r) for r in own if r.status == status] for status in ("diverged", "finished")))
        stopped = f"{_count(own, 'stopped')} ({sum(r.status == 'stopped' and ratio(r) > 1 for r in own)} above)"
        rows.append((variant.name, str(len(own)), *cells, stopped, f"{found.auc:.3f}" if found else "-"))
    columns = (
        "variant",
        "trials",
        "above, diverged",
        "above, did not",
        "below, diverged",
        "below, did not",
        "stopped early",
        "probability",
    )
    note = (
        "Above means that lr.peak was larger than the rate predicted from the largest and the mean curvature at the "
        "initial weights. Did not means that a trial finished without diverging. Trials stopped early had not diverged "
        "by then. The probability is that a trial that diverged has a larger ratio than one that did not. Adaptive "
        "rules and p above 2 have no prediction."
    )
    return Table("critical_lr", "Predicted and observed divergence", columns, tuple(rows), note)


def _spared(search: Search) -> tuple[Table, ...]:
    """The trials far above the predicted rate that did not diverge."""
    factor = search.spec.far_above_critical
    rows = [
        (
            record.name,
            f"{record.spec.optimizer.lr.peak:.3g}",
            f"{record.history[-1].critical_lr:.3g}",
            f"{ratio(record):.3g}",
            record.status,
            f"{record.history[-1].validation_accuracy:.1%}",
        )
        for record in predicted(search)
        if ratio(record) > factor and record.status != "diverged"
    ]
    columns = ("trial", "lr.peak", "predicted critical", "ratio", "ended", f"last {search.score}")
    title = f"Trials above {factor:g} times the predicted critical rate that did not diverge"
    return (Table("critical_lr_missed", title, columns, tuple(rows)),) if rows else ()


def _count(records: Sequence[TrialRecord], status: str) -> int:
    return sum(record.status == status for record in records)
