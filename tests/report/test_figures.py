"""The pictures of a report: what is drawn is the data."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import Collection, LineCollection
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D

from benchmarks.simulated_search import Truth, simulate
from search_spaces import GROUPS, SPACES
from tests.report.racing import raced, trained
from tuner.core.metrics import EpochMetrics
from tuner.core.search_spec import SearchSpec
from tuner.report.comparison import ranking, times
from tuner.report.costs import cost
from tuner.report.curves import convergence, profile, schedules, tuning_curves
from tuner.report.document import Picture
from tuner.report.figures import COLOURS, DASHES, mark, styles
from tuner.report.findings import importances
from tuner.report.profiles import performance_profiles
from tuner.report.scatter import EDGE, MISSED, importance, learning_rates, times_to_target
from tuner.report.tuning_curves import tuning_curve
from tuner.study.objectives import evaluate
from tuner.study.results import Search
from tuner.study.trial_record import TrialRecord

FOUR = ("sgdm", "adamw", "lpsgdm", "critical")
OF_ONE: Sequence[Callable[[Search], Picture | None]] = (
    convergence,
    times_to_target,
    tuning_curves,
    schedules,
    learning_rates,
    importance,
)


def simulated(
    *names: str, output: Path | None = None, limit: float = 3.0, speed: float = 1.0, **changes: Any
) -> Search:
    """A search whose variants differ in speed, are best near their default learning rate, and diverge beyond it."""
    truths = {}
    for i, name in enumerate(names):
        lr = float(SPACES[name].default["lr.peak"])  # type: ignore[arg-type]
        truths[name] = Truth(speed=speed * (0.35 + 0.1 * (i % 4)), lr_best=lr, lr_limit=limit * lr)
    return simulate(
        SearchSpec.from_flags(**{"name": "x", "variants": names, "trials": 8, "confirm": "all", **changes}),
        truths,
        output=output,
    )


@pytest.fixture(scope="module")
def four() -> Search:
    return simulated(*FOUR)


def axes_of(picture: Picture | None) -> list[Axes]:
    assert picture is not None
    return [axes for axes in picture.figure.axes if axes.get_visible()]


def points(line: Line2D) -> list[tuple[float, float]]:
    return [(x, y) for x, y in np.asarray(line.get_xydata(), dtype=float).tolist()]


def line_of(axes: Axes, label: str) -> Line2D:
    (found,) = (line for line in axes.lines if line.get_label() == label)
    return found


def corners(band: Collection) -> set[tuple[float, float]]:
    (path,) = band.get_paths()
    return {(x, y) for x, y in np.asarray(path.vertices, dtype=float).round(6).tolist()}


def edges(x: Sequence[float], *ys: Sequence[float]) -> set[tuple[float, float]]:
    return {(round(a, 6), round(b, 6)) for y in ys for a, b in zip(x, y, strict=True)}


# Styles


def test_a_variants_style_does_not_depend_on_the_others() -> None:
    everything = styles(SPACES)
    for name in SPACES:
        assert styles([name]) == {name: everything[name]}
    assert styles(["mine", "critical", "yours"])["critical"] == everything["critical"]


def test_no_two_variants_look_alike_nor_do_a_users_own() -> None:
    looks = styles([*SPACES, *(f"own-{number}" for number in range(len(COLOURS) * len(DASHES) - len(SPACES)))])
    assert len(set(looks.values())) == len(looks) > len(SPACES) + 10
    assert {(mark(*look), look[1]) for look in looks.values()} == {(mark(c, d), d) for c in COLOURS for d in DASHES}
    assert len({(mark(*look), look[1]) for look in looks.values()}) == len(looks), "told apart without colours"


def test_the_variants_of_the_default_search_differ_in_colour_and_mark() -> None:
    looks = styles(SearchSpec().variants)
    assert len({colour for colour, _ in looks.values()}) == len({mark(*look) for look in looks.values()}) == 4


def test_every_colour_stands_out_from_white() -> None:
    for colour in COLOURS:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
        luminance = float(np.dot((0.2126, 0.7152, 0.0722), linear))
        assert 1.05 / (luminance + 0.05) > 2, f"{colour}: the yellow that is left out has 1.3"


# Convergence


def test_convergence_is_the_median_over_seeds_in_a_band_from_the_smallest_to_the_largest(four: Search) -> None:
    picture = convergence(four)
    (axes,) = axes_of(picture)
    assert picture and "n = 6" in picture.title and "from the smallest to the largest" in picture.title
    bands = [band for band in axes.collections if not isinstance(band, LineCollection)]
    for name, band in zip(FOUR, bands, strict=True):
        histories = [record.history for record in four.confirmed(name).values()]
        spent = [metrics.gradient_evaluations for metrics in histories[0]]
        accuracies = np.array([[metrics.validation_accuracy for metrics in history] for history in histories])
        line = line_of(axes, name)
        assert points(line) == list(zip(spent, np.median(accuracies, axis=0), strict=True))
        assert (line.get_color(), line.get_linestyle()) == styles(FOUR)[name]
        assert corners(band) == edges(spent, accuracies.min(axis=0).tolist(), accuracies.max(axis=0).tolist())
    targets = {points(line)[0][1] for line in axes.lines if line.get_linestyle() == ":"}
    assert targets == set(four.spec.training.targets)


def test_a_run_that_diverged_counts_as_0_from_there_on_and_one_that_failed_not_at_all() -> None:
    search = simulated("sgdm", confirm_seeds=3, limit=math.inf)
    first, second, third = search.confirmed("sgdm").values()
    first.history[4:] = [dataclasses.replace(first.history[4], diverged=True)]
    first.status, second.status = "diverged", "failed"
    picture = convergence(search)
    (axes,) = axes_of(picture)
    whole = [metrics.validation_accuracy for metrics in third.history]
    begun = [metrics.validation_accuracy for metrics in first.history[:4]] + [0.0] * (len(whole) - 4)
    assert [y for _, y in points(line_of(axes, "sgdm"))] == pytest.approx(np.mean([whole, begun], axis=0))
    assert picture and "n = 2" in picture.title and "diverged counts as 0%" in picture.title


def test_without_confirmed_runs_the_best_trial_is_thick_and_all_are_thin() -> None:
    search = simulated("sgdm", "critical", confirm_seeds=0)
    picture = convergence(search)
    (axes,) = axes_of(picture)
    thin = [lines for lines in axes.collections if isinstance(lines, LineCollection)]
    diverged = 0
    for name, lines in zip(("sgdm", "critical"), thin, strict=True):
        best, trials = search.best(name), search.trials_of(name)
        assert best and [y for _, y in points(line_of(axes, name))] == [m.validation_accuracy for m in best.history]
        assert [len(segment) for segment in lines.get_segments()] == [len(trial.history) for trial in trials]
        diverged += sum(trial.status == "diverged" for trial in trials)
    assert sum(len(points(line)) for line in axes.lines if line.get_marker() == "x") == diverged > 0
    assert picture and "No run is confirmed" in picture.title


def test_unconfirmed_variants_of_a_search_are_named() -> None:
    search = simulated("sgdm", "critical")
    for name in [name for name, record in search.records.items() if record.variant == "sgdm" and "/" in name]:
        del search.records[name]
    picture = convergence(search)
    assert picture and "Variants without confirmed runs are not drawn: sgdm." in picture.title
    assert "sgdm" not in {line.get_label() for line in axes_of(picture)[0].lines}


def test_many_variants_have_a_panel_each_with_the_others_in_grey() -> None:
    names = tuple(SPACES)[:7]
    search = simulated(*names, trials=2, round_size=1, refine_trials=2, confirm_seeds=1)
    panels = axes_of(convergence(search))
    assert [axes.get_title("left") for axes in panels] == list(names)
    for axes, name in zip(panels, names, strict=True):
        assert line_of(axes, name).get_color() == styles([name])[name][0]
        (others,) = (lines for lines in axes.collections if isinstance(lines, LineCollection))
        assert len(others.get_segments()) == 7


# Times to target


def drawn_times(search: Search) -> dict[float, dict[str, list[Line2D]]]:
    """Target -> variant -> the lines of its row."""
    panels = axes_of(times_to_target(search))
    names = [label.get_text() for label in panels[0].get_yticklabels()]
    assert names == ranking(search)
    return {
        target: {
            name: [line for line in axes.lines if round(float(np.mean(points(line), axis=0)[1])) == y]
            for y, name in enumerate(names)
        }
        for target, axes in zip(search.spec.training.targets, panels, strict=True)
    }


@pytest.mark.parametrize(("speed", "missed"), [(2.0, 0), (0.9, 1), (0.6, 6)])
def test_times_are_medians_with_intervals_and_misses_are_arrows_beyond_the_budget(speed: float, missed: int) -> None:
    """Of six seeds one that missed leaves the interval without an end, and six leave nothing but arrows."""
    search = simulated("critical", "sgdm", speed=speed, limit=math.inf)
    drawn, beyond = drawn_times(search), MISSED * search.records["sgdm-00"].history[0].budget
    found = [time for time in times(search) if time.unit == "gradient_evaluations"]
    assert max(time.num_seeds - time.reached for time in found) == missed
    for time in found:
        lines, interval = drawn[time.target][time.variant], time.interval
        seeds = [(x, line.get_marker()) for line in lines if line.get_alpha() for x, _ in points(line)]
        costs = [
            cost(search, run, time.target, "gradient_evaluations") for run in search.confirmed(time.variant).values()
        ]
        assert sorted(seeds) == sorted((beyond, ">") if c == math.inf else (c, "o") for c in costs)
        bar, middle, *arrow = [line for line in lines if not line.get_alpha()]
        assert [x for x, _ in points(bar)] == [min(end, beyond) for end in (interval.low, interval.high)]
        assert points(middle)[0][0] == min(interval.estimate, beyond)
        assert (middle.get_marker() == ">") == (interval.estimate == math.inf)
        assert [(points(line)[0][0], line.get_marker()) for line in arrow] == (
            [(beyond, ">")] if interval.estimate < interval.high == math.inf else []
        )


@pytest.mark.parametrize(("seeds", "hollow"), [(3, True), (6, False)])
def test_an_interval_below_95_percent_is_hollow(seeds: int, hollow: bool) -> None:
    search = simulated("sgdm", confirm_seeds=seeds)
    marks = [line for line in drawn_times(search)[0.9]["sgdm"] if len(points(line)) == 1 and not line.get_alpha()]
    assert marks and {line.get_markerfacecolor() == "white" for line in marks} == {hollow}


# Tuning curves and schedules


def test_tuning_curves_are_medians_in_their_bands() -> None:
    search = simulated("critical", "sgdm", trials=16, refine_trials=0, confirm_seeds=0, objective="auc")
    picture = tuning_curves(search)
    panels = axes_of(picture)
    assert [axes.get_title("left") for axes in panels] == ["critical", "sgdm"]
    for axes, name in zip(panels, ("critical", "sgdm"), strict=True):
        curve = tuning_curve(search, name)
        assert curve is not None and len(curve.rounds) == 4
        np.testing.assert_array_equal(points(axes.lines[0]), np.column_stack([curve.rounds, curve.median]))
        assert corners(axes.collections[0]) == edges(curve.rounds.tolist(), curve.low.tolist(), curve.high.tolist())
        low, high = axes.get_ylim()
        assert low < np.nanmin(curve.median) and np.nanmax(curve.median) < high
    assert picture and "of 4 random settings each" in picture.title and "80% band" in picture.title


def test_a_median_that_is_not_known_is_not_drawn(epoch: Callable[..., EpochMetrics]) -> None:
    """Of four rounds adamw was fast enough to be timed in two, and lion in none."""
    times = {"sgdm": [40.0] * 4, "adamw": [45.0, 90.0, 90.0, 45.0], "lion": [90.0] * 4}
    search = trained(raced(times), epoch, {name: [0.5] for name in times})
    picture = tuning_curves(search)
    panels = axes_of(picture)
    assert [axes.get_title("left") for axes in panels] == ["sgdm", "adamw"]
    assert picture and "There is no line where the median is not known" in picture.title
    assert "It is known nowhere for lion." in picture.title
    # One of the two known ones is the median; the best of two rounds and more is known for certain.
    assert [y for _, y in points(panels[1].lines[0])] == [45.0] * 4
    known = tuning_curves(simulated("critical", "sgdm", trials=16, objective="accuracy", confirm_seeds=0))
    assert known and "not known" not in known.title


def test_schedules_are_what_the_winners_logged(four: Search) -> None:
    panels = {axes.get_title("left"): axes for axes in axes_of(schedules(four))}
    assert list(panels) == list(FOUR)
    for name, axes in panels.items():
        history = four.confirmed(name)[0].history
        lines = {line.get_linestyle(): points(line) for line in axes.lines}
        assert set(lines) == ({"-", "--", ":"} if name == "lpsgdm" else {"-", "--"}), "p is of l_p descent alone"
        # A rate of 0, as here after the last step, has no place on a logarithmic axis.
        assert lines["-"][:-1] == [(m.epoch, m.lr) for m in history[:-1]] and history[-1].lr == 0
        assert lines["--"] == [(m.epoch, 1 - m.momentum) for m in history]
        assert axes.get_yscale() == "log" and {line.get_color() for line in axes.lines} == {styles([name])[name][0]}
        if name == "lpsgdm":
            assert lines[":"] == [(m.epoch, m.p) for m in history]


def test_an_endless_p_is_said() -> None:
    search = simulated("lpsgdm-sign", confirm_seeds=1)
    (run,) = search.confirmed("lpsgdm-sign").values()
    run.history[:] = [dataclasses.replace(metrics, p=math.inf) for metrics in run.history]
    assert axes_of(schedules(search))[0].get_title("left") == "lpsgdm-sign (p = ∞)"


# Learning rates, importance, profiles


def test_learning_rates_tell_the_endings_apart(four: Search) -> None:
    for axes, name in zip(axes_of(learning_rates(four)), FOUR, strict=True):
        for status in ("finished", "stopped", "diverged"):
            trials = [trial for trial in four.trials_of(name) if trial.status == status]
            line = line_of(axes, status)
            heights = [EDGE if status == "diverged" else objective(four, trial) for trial in trials]
            assert points(line) == [(t.spec.optimizer.lr.peak, y) for t, y in zip(trials, heights, strict=True)]
            assert (line.get_markerfacecolor() == "none") == (status == "stopped")
            in_axes = line.get_transform() == axes.get_xaxis_transform()
            assert in_axes == (status == "diverged") and (line.get_marker() == "x") == in_axes
        best, (ring,) = four.best(name), (line for line in axes.lines if line.get_fillstyle() == "none")
        assert best and points(ring) == [(best.spec.optimizer.lr.peak, objective(four, best))]
        default = [points(line)[0][0] for line in axes.lines if line.get_linestyle() == "--"]
        assert default == [SPACES[name].default["lr.peak"]]
        low, high = axes.get_ylim()
        others = points(line_of(axes, "finished")) + points(line_of(axes, "stopped"))
        assert max(y for _, y in others) < low + 0.9 * (high - low), "the edge is the diverged trials' own"
    statuses = {trial.status for name in FOUR for trial in four.trials_of(name)}
    assert statuses == {"finished", "stopped", "diverged"}, "else nothing was tested"


def objective(search: Search, record: TrialRecord) -> float:
    return evaluate(search.spec.objective, record.history, search.spec.training.targets)[0]


def test_importance_is_a_bar_a_setting(tmp_path: Path, quick_sqlite: None) -> None:
    search = simulated("sgdm", trials=24, output=tmp_path, early_stopping=False)
    (axes,) = axes_of(importance(search))
    shares = importances(search)["sgdm"]
    widths = [patch.get_width() for patch in axes.patches]  # type: ignore[attr-defined]
    assert widths == sorted(shares.values(), reverse=True)[:5] and len(widths) == 5
    assert [text.get_text().split()[0] for text in axes.texts] == list(shares)[:5]


def test_a_profile_has_a_step_where_a_share_rises(four: Search) -> None:
    searches = [four, simulated(*reversed(FOUR))]
    (axes,) = axes_of(profile(searches))
    for line, expected in zip(axes.lines, performance_profiles(searches), strict=True):
        assert points(line) == list(zip(expected.factors, expected.shares, strict=True))
        assert line.get_drawstyle() == "steps-post"
        assert (line.get_color(), line.get_linestyle()) == styles([expected.variant])[expected.variant]
    assert profile([four]) is profile([]) is None


# All of them


def unfinished() -> Search:
    """A search some of whose trials run, wait or failed before their first epoch."""
    search = simulated("sgdm", "critical")
    for record in list(search.records.values()):
        if record.phase == "confirm" and record.number > 1:
            record.status, record.history = ("running", record.history[:2]) if record.number == 2 else ("pending", [])
        elif record.variant == "critical":
            record.status, record.history = ("failed", []) if record.number == 0 else ("running", record.history[:1])
    return search


ODD: dict[str, Callable[[], Search]] = {
    "one trial": lambda: simulated("sgdm", trials=1, round_size=1, refine_trials=1, confirm_seeds=1),
    "one epoch": lambda: simulated("sgdm", epochs=1),
    "all diverged": lambda: simulated("sgdm", "adamw", limit=1e-9),
    "not confirmed": lambda: simulated("sgdm", "adamw", confirm_seeds=0),
    "unfinished": unfinished,
    "two objectives": lambda: simulated("sgdm", "adamw", objective="pareto"),
    "all variants": lambda: simulated(
        *GROUPS["all"], trials=2, round_size=1, refine_trials=0, epochs=40, confirm_seeds=0
    ),
    "accuracy": lambda: simulated("sgdm", "adamw", objective="accuracy"),
    "never reached": lambda: simulated("sgdm", "adamw", speed=0.1, targets=(0.5, 0.9, 0.985)),
}


@pytest.mark.parametrize("odd", ODD)
def test_odd_searches_are_drawn_without_a_warning(odd: str) -> None:
    search = ODD[odd]()
    drawn = [picture for draw in OF_ONE if (picture := draw(search))]
    for picture in [*drawn, profile([search, search])]:
        if picture:
            assert picture.title.endswith(".") and picture.figure.get_figwidth() < 6.5
            picture.figure.savefig(io.BytesIO(), format="svg")
    assert {"convergence", "learning_rates"} <= {picture.name for picture in drawn}


def test_where_nothing_is_known_nothing_is_drawn(four: Search) -> None:
    nothing = dataclasses.replace(four, records={}, studies={})
    waiting = dataclasses.replace(
        nothing, records={"sgdm-00": dataclasses.replace(four.records["sgdm-00"], status="pending", history=[])}
    )
    for search in (nothing, waiting):
        assert [draw(search) for draw in OF_ONE] == [None] * len(OF_ONE)


def test_thousands_of_trials_are_an_image_of_less_than_half_a_megabyte() -> None:
    search = simulated(*FOUR, confirm_seeds=0, refine_trials=0, early_stopping=False, trials=4, epochs=30)
    for record in list(search.records.values()):
        search.records |= {f"{record.name}-{i}": dataclasses.replace(record) for i in range(250)}
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        for picture in (convergence(search), learning_rates(search)):
            svg = io.BytesIO()
            assert picture is not None
            picture.figure.savefig(svg, format="svg")
            assert len(svg.getvalue()) < 500_000 and b"image/png" in svg.getvalue()
            assert b"sgdm" in svg.getvalue(), "text is text"
