"""Predicted against observed divergence: counted, correlated and drawn as it is."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from search_spaces import SPACES
from tuner.core.metrics import EpochMetrics
from tuner.core.search_spec import SearchSpec
from tuner.core.serialization import with_settings
from tuner.core.trial_spec import OptimizerSpec
from tuner.core.variants import resolve_variants
from tuner.report.critical_lr_check import OFFSETS, agreement, critical_lr, ratios
from tuner.report.document import Section
from tuner.report.outline import report_of
from tuner.study.results import Search
from tuner.study.trial_record import TrialRecord

Epoch = Callable[..., EpochMetrics]
Trials = Sequence[tuple[str, float | None, str]]
"""Variant, lr.peak over the predicted rate, status."""


@pytest.fixture
def searched(epoch: Epoch) -> Callable[..., Search]:
    """A search of two variants with these trials, of which all were predicted to diverge from lr.peak 0.1 on."""

    def make(trials: Trials, **changes: float) -> Search:
        spec = SearchSpec.from_flags(name="x", variants=("sgd", "sgdm"), predict_critical_lr=True, **changes)
        search = Search(spec, "id", resolve_variants(spec.variants, ()), Path("x"), {})
        for number, (variant, ratio, status) in enumerate(trials):
            point = {**SPACES[variant].default_settings(), "lr.peak": 0.1 * (ratio or 1)}
            record = TrialRecord(
                f"{variant}-{number:02d}", variant, number,
                spec.trial_spec(with_settings(OptimizerSpec(), point), number), status=status,
            )  # fmt: skip
            known = ratio is not None
            record.history.append(
                epoch(
                    1,
                    0.5,
                    diverged=status == "diverged",
                    critical_lr=0.1 if known else None,
                    lr_over_critical=ratio,
                )
            )
            search.records[record.name] = record
        return search

    return make


def said(section: Section) -> str:
    return " ".join(section.sentences)


MIXED: Trials = [
    ("sgd", 0.5, "finished"),
    ("sgd", 2.0, "diverged"),
    ("sgd", 4.0, "stopped"),
    ("sgd", 0.2, "stopped"),
    ("sgd", None, "finished"),
    ("sgdm", 0.7, "diverged"),
    ("sgdm", 5.0, "finished"),
    ("sgdm", 50.0, "diverged"),
    ("sgdm", 60.0, "failed"),
    ("sgdm", 1.0, "running"),
]


def test_every_trial_is_counted_once_where_it_belongs(searched: Callable[..., Search]) -> None:
    section = critical_lr(searched(MIXED))
    counts, missed = section.tables
    # trials; above: diverged, did not; below: diverged, did not; stopped
    assert counts.rows[0] == ("sgd", "4", "1", "0", "0", "1", "2 (1 above)", "1.000")
    assert counts.rows[1] == ("sgdm", "3", "1", "1", "1", "0", "0 (0 above)", "0.500")
    assert "7 trials have a prediction: 3 diverged, 2 finished without diverging, and 2 had not" in said(section)
    (of_one,) = critical_lr(searched([*MIXED[:5], ("sgdm", None, "finished")])).tables[0].rows
    assert of_one[0] == "sgd", "a variant without a prediction has no row"
    assert [(row[0], row[3], row[4]) for row in missed.rows] == [
        ("sgd-02", "4", "stopped"),
        ("sgdm-06", "5", "finished"),
    ]


def test_what_pruning_would_have_cost_is_said_at_the_factor_asked(searched: Callable[..., Search]) -> None:
    assert "3 trials lay above 3 times" in said(critical_lr(searched(MIXED)))
    assert "would have been pruned: 1 diverged, 1 were stopped before diverging, and 1 finished, for" in said(
        critical_lr(searched(MIXED))
    )
    asked = critical_lr(searched(MIXED, prune_above_critical=4.5))
    assert "2 trials lay above 4.5 times the predicted critical rate, where trials were pruned: 1 div" in said(asked)
    assert [row[0] for row in asked.tables[1].rows] == ["sgdm-06"]
    none = critical_lr(searched(MIXED, prune_above_critical=1000.0))
    assert "No trial lay above 1000 times" in said(none) and len(none.tables) == 1


def test_trials_that_were_stopped_take_no_part_in_the_correlation(searched: Callable[..., Search]) -> None:
    with_stopped = critical_lr(searched(MIXED)).sentences[1:4]
    without = critical_lr(searched([trial for trial in MIXED if trial[2] != "stopped"])).sentences[1:4]
    assert with_stopped == without
    # Of 3 diverged and 2 others: 2 > .5, .7 > .5, 50 > .5, 50 > 5; within sgd 1 of 1, within sgdm 1 of 2.
    assert "with probability 0.667" in with_stopped[0] and "66.7% of 3 pairs" in with_stopped[2]
    assert "diverged is 0.7. The largest ratio of a trial that did not is 5." in with_stopped[1]


@pytest.mark.parametrize(
    ("trials", "says"),
    [
        ([("sgd", 1.0, "finished"), ("sgd", 9.0, "finished")], "No trial diverged, so "),
        ([("sgd", 1.0, "diverged"), ("sgdm", 9.0, "diverged")], "All trials diverged, so "),
        ([("sgd", 2.0, "diverged"), ("sgdm", 2.0, "finished")], "All trials have the same ratio, so "),
        ([("sgd", 2.0, "stopped")], "1 had not diverged when they were stopped early"),
    ],
)
def test_where_there_is_nothing_to_tell_apart_it_is_said(
    searched: Callable[..., Search], trials: Trials, says: str
) -> None:
    section = critical_lr(searched(trials))
    assert says in said(section) and "probability" not in said(section)
    cells = [cell for table in section.tables for row in table.rows for cell in row]
    assert "nan" not in said(section).lower().split() and "nan" not in cells
    assert ratios(searched(trials)) is not None


def test_the_section_is_there_only_where_something_was_predicted(searched: Callable[..., Search]) -> None:
    title = "Predicted critical learning rate"
    unasked = searched([("sgd", None, "finished"), ("sgdm", None, "diverged")])
    assert ratios(unasked) is None and critical_lr(unasked) == Section(title)
    assert title not in [section.title for section in report_of(unasked).sections]
    section = next(section for section in report_of(searched(MIXED)).sections if section.title == title)
    assert len(section.pictures) == 1 and len(section.tables) == 2


def test_auc_counts_pairs_and_the_correlation_is_spearmans() -> None:
    generator = np.random.default_rng(0)
    fallen, steady = (generator.integers(0, 8, size).astype(float).tolist() for size in (9, 14))
    found = agreement(fallen, steady)
    assert found is not None
    pairs = [(one > other) + (one == other) / 2 for one, other in itertools.product(fallen, steady)]
    assert found.auc == pytest.approx(float(np.mean(pairs)))
    labels = [1] * len(fallen) + [0] * len(steady)
    assert found.spearman == pytest.approx(float(spearmanr([*fallen, *steady], labels).statistic))
    reverse = agreement(steady, fallen)
    assert reverse is not None
    assert (reverse.auc, reverse.spearman) == pytest.approx((1 - found.auc, -found.spearman))
    assert reverse.p_value == pytest.approx(found.p_value)


def test_the_p_value_is_that_of_permuting_which_trials_diverged() -> None:
    fallen, steady = [3.0, 4.5, 9.0, 2.5], [1.0, 2.0, 4.0, 0.5, 3.5, 0.1]
    found = agreement(fallen, steady)
    assert found is not None
    everyone = [*fallen, *steady]
    choices = itertools.combinations(range(len(everyone)), len(fallen))
    permuted = [float(spearmanr(everyone, [i in chosen for i in range(10)]).statistic) for chosen in choices]
    extreme = [abs(value) >= abs(found.spearman) - 1e-9 for value in permuted]
    assert found.p_value == pytest.approx(np.mean(extreme))


def test_the_picture_has_each_trial_at_its_ratio_in_its_variants_row(searched: Callable[..., Search]) -> None:
    picture = ratios(searched(MIXED))
    assert picture is not None
    (axes,) = picture.figure.axes
    drawn = {(float(x), float(y)) for line in axes.lines for x, y in np.asarray(line.get_xydata()).tolist()}
    expected = {
        (ratio, ("sgd", "sgdm").index(variant) + OFFSETS[status])
        for variant, ratio, status in MIXED
        if ratio is not None and status in OFFSETS
    }
    assert expected <= drawn
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["sgd", "sgdm"]
