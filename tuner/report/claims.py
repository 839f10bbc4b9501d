"""The comparisons in words: verdicts, claims against their controls, tuned against default settings.

A sentence claims no more than its interval supports.  A sentence about *these settings* rests on the seeds alone.  A
sentence about a *variant* includes the luck of the searches as well.
"""

from __future__ import annotations

import math
from typing import TypeAlias

from search_spaces import SPACES
from tuner.core.metrics import target_label
from tuner.core.serialization import with_settings
from tuner.core.trial_spec import OptimizerSpec
from tuner.report.comparison import ERROR, Comparison, compare, compare_pair, cost, describe
from tuner.report.comparison import tuned_against_default as tuning_ratios
from tuner.report.document import Section, Table
from tuner.report.intervals import Interval, holm, median_interval, paired_ratio
from tuner.study.results import Point, Search, TrialRecord

Place: TypeAlias = tuple[str, Point]
"""A variant's name and one of its two points."""
COLUMNS = (
    "variant",
    "against",
    "ratio, these settings",
    "these settings are",
    "ratio, luck of both searches included",
    "the variant is",
)
UNCONFIRMED = "Nothing was confirmed (--confirm-seeds 0), so no difference can be called real."


def verdict(search: Search) -> Section:
    """One sentence per variant against the baseline, and their table."""
    made = compare(search)
    if not made:
        return Section("Verdict", (f"{search.baseline} is the only variant: there is nothing to compare it with.",))
    if not search.spec.confirm_seeds:
        return Section("Verdict", (UNCONFIRMED,))
    note = f"{_note(search)} Verdicts are adjusted for {len(made)} comparisons (Holm's method)."
    table = Table("verdict", f"Each variant against {search.baseline}", COLUMNS, tuple(map(_row, made)), note)
    return Section("Verdict", tuple(_against(search, one, len(made)) for one in made), tables=(table,))


def _against(search: Search, made: Comparison, num_comparisons: int) -> str:
    ours, theirs = made.variant, made.baseline
    if made.settings is None:
        return f"{ours} cannot be compared with {theirs}: {_missing(search, (ours, 'best'), (theirs, 'best'))}."
    if made.verdict != "undecided":
        return (
            f"{ours} is {made.verdict} than {theirs}: it {_reached(search, made)}. This includes the luck of both "
            "searches."
        )
    if made.settings_verdict == "undecided":
        why = _why(made.settings, made.settings_p_value, num_comparisons)
        return f"Whether {ours} is faster than {theirs} is undecided: {ours} {_reached(search, made)}{why}."
    return (
        f"The settings found for {ours} are {made.settings_verdict} than those found for {theirs}. With equal seeds, "
        f"{ours} {_reached(search, made)}. Whether the variant is {made.settings_verdict} is undecided: "
        f"{_with_luck(made, num_comparisons)}."
    )


def _with_luck(made: Comparison, num_comparisons: int) -> str:
    whole = made.whole
    if whole is None:
        return "no random trial of either variant reached the target"
    if not whole.decided:
        return f"there are too few random trials{_why(whole, None, num_comparisons)}"
    if (whole.low, whole.high) == (0, math.inf):
        return "once the luck of both searches is included, any ratio is possible"
    ratio = describe(whole)
    if whole.estimate in (0, math.inf):
        ratio = f"{'at most' if whole.low == 0 else 'at least'} {whole.high if whole.low == 0 else whole.low:.3g}"
    return (
        f"once the luck of both searches is included, the ratio is {ratio}{_why(whole, made.p_value, num_comparisons)}"
    )


def claims(search: Search) -> Section:
    """Each claim against the controls that test it: how much of the claim's effect they have as well."""
    if not search.spec.confirm_seeds:
        return Section("Claims and controls", (UNCONFIRMED,))
    names = [variant.name for variant in search.variants]
    direct = [
        compare_pair(search, control.controls, control.name)
        for control in search.variants
        if control.controls is not None and control.controls in names
    ]
    effects = {made.variant: made for made in compare(search)}
    middles = [_middle(search, made.variant, made.baseline) for made in direct]
    adjusted = holm([_p_value(middle) for middle in middles])
    sentences = [
        _claim(search, made, effects, middle if p_value <= ERROR else None)
        for made, middle, p_value in zip(direct, middles, adjusted, strict=True)
    ]
    for name in names:
        if absent := [known.name for known in SPACES.values() if known.controls == name and known.name not in names]:
            sentences.append(
                f"This search lacks {'a control' if len(absent) == 1 else 'controls'} of {name} ({', '.join(absent)}): "
                f"the cause of {name}'s result is not tested."
            )
    if not sentences:
        return Section("Claims and controls", ("No variant of this search has a control.",))
    note = (
        f"{_note(search)} These verdicts are not adjusted for multiple comparisons. Most of a gain is the control's "
        "if its cost is shown to lie below the geometric mean of the claim's and the baseline's costs. This test is by "
        "equal seeds and is adjusted for all controls (Holm's method)."
    )
    table = Table("claims", "Each claim against its control", COLUMNS, tuple(map(_row, direct)), note)
    return Section("Claims and controls", tuple(sentences), tables=(table,) if direct else ())


def _claim(search: Search, direct: Comparison, effects: dict[str, Comparison], middle: Interval | None) -> str:
    claim, control = direct.variant, direct.baseline
    effect, other = effects.get(claim), effects.get(control)
    said = ""
    if effect and effect.settings and other and other.settings:
        # By seeds alone, so the control's share is known for these settings only.
        ours, theirs = (_reached(search, made, made.settings) for made in (effect, other))
        said = f"{claim} {ours}. Its control {control} {theirs}. "
        if effect.settings_verdict != "faster":
            said += "No gain is shown that the control could explain. "
        elif middle and middle.decided and not middle.low <= 1 <= middle.high:
            said += f"Most of the gain of these settings is {'not ' if middle.low > 1 else ''}the control's. "
        else:
            said += "Whether most of the gain is the control's is undecided. "
    if direct.settings is None:
        missing = _missing(search, (claim, "best"), (control, "best"))
        return f"{said}{claim} cannot be compared with its control {control}: {missing}."
    if direct.verdict != "undecided":
        found = f"the variant is {direct.verdict}, with the luck of both searches included"
    elif direct.settings_verdict != "undecided":
        word = direct.settings_verdict
        found = f"these settings are {word}, and whether the variant is {word} is undecided"
    else:
        found = "no difference between the two is shown" + _why(direct.settings, direct.settings_p_value, 1)
    return f"{said}Compared with its control, {claim} {_reached(search, direct)}: {found}."


def _middle(search: Search, claim: str, control: str) -> Interval | None:
    # The control's cost over the geometric mean of the claim's and the baseline's costs, by equal seeds.  Below 1, the
    # control is nearer to the claim: it has more than half of the gain on a logarithmic scale.
    if search.baseline in (claim, control):
        return None
    runs = [_observed(search, (name, "best")) for name in (control, claim, search.baseline)]
    seeds = [k for k in runs[0] if k in runs[1] and k in runs[2]]
    costs, claimed, based = ([_cost(search, some[k]) for k in seeds] for some in runs)
    middles = [math.sqrt(a * b) for a, b in zip(claimed, based, strict=True)]
    return paired_ratio(costs, middles) if any(map(math.isfinite, [*costs, *middles])) else None


def tuned_against_default(search: Search) -> Section:
    """The best settings against the variant's own default point, by equal seeds."""
    if not search.spec.confirm_seeds:
        return Section("Tuned against default", (UNCONFIRMED,))
    ratios = tuning_ratios(search)
    adjusted = holm([_p_value(ratio) for ratio in ratios.values()])
    sentences, rows = [], []
    for variant, (name, ratio), p_value in zip(search.variants, ratios.items(), adjusted, strict=True):
        tuned: Place = (name, "best")
        default: Place = (name, "default")
        best = search.best(name)
        if best and best.spec.optimizer == with_settings(OptimizerSpec(), variant.default_settings()):
            sentences.append(f"{name}: the best settings found are the default point.")
        elif ratio is None:
            missing = _missing(search, tuned, default)
            sentences.append(f"{name}: tuned and default settings cannot be compared, because {missing}.")
        else:
            found = f"the tuned settings are not shown to be better{_why(ratio, p_value, len(ratios))}"
            if ratio.decided and p_value <= ERROR and not ratio.low <= 1 <= ratio.high:
                found = "tuning paid" if ratio.high < 1 else "the default point is faster than the tuned settings"
            sentences.append(f"The settings tuned for {name} {_reached_at(search, ratio, tuned, default)}: {found}.")
        rows.append((name, _median(search, tuned), _median(search, default), describe(ratio) if ratio else "-"))
    note = (
        f"The numbers are gradient evaluations to {_goal(search)}. Verdicts are adjusted for {len(ratios)} variants "
        "(Holm's method)."
    )
    columns = ("variant", "best settings", "default point", "ratio, by equal seeds")
    table = Table("tuned_against_default", "Tuned against default", columns, tuple(rows), note)
    return Section("Tuned against default", tuple(sentences), tables=(table,))


def _reached(search: Search, made: Comparison, interval: Interval | None = None) -> str:
    # The variants' interval if their difference is decided, else the settings' one.
    interval = interval or (made.settings if made.verdict == "undecided" else made.whole)
    assert interval is not None
    return _reached_at(search, interval, (made.variant, "best"), (made.baseline, "best"))


def _reached_at(search: Search, interval: Interval, ours: Place, theirs: Place) -> str:
    who, whose = (ours[0], theirs[0]) if theirs[1] == "best" else ("the tuned settings", "the default point")
    goal, costs, others = _goal(search), _costs(search, ours), _costs(search, theirs)
    runs, other_runs = (f"{sum(map(math.isfinite, c))} of {len(c)} confirmed runs" for c in (costs, others))
    if interval.estimate in (0, math.inf):
        return f"reached {goal} in {runs}, {whose} in {other_runs}"
    missed = "" if math.inf not in [*costs, *others] else f" ({who} reached it in {runs}, {whose} in {other_runs})"
    times = "of" if interval.estimate <= 1 else "times"
    return f"reached {goal} in {describe(interval)} {times} {whose}'s gradient evaluations{missed}"


def _why(interval: Interval, p_value: float | None, num_tests: int) -> str:
    """Why an interval decides nothing, if its ends do not show it; it continues a sentence."""
    if not interval.decided:
        return f". A level of {100 * interval.level:.0f}% is below the 95% that a decision needs"
    if p_value is None or interval.low <= 1 <= interval.high:
        return ""
    return f". Adjusted for {num_tests} comparisons, p is {p_value:.2g}"


def _missing(search: Search, ours: Place, theirs: Place) -> str:
    """Why there is no ratio between two points."""
    for name, point in (ours, theirs):
        if search.best(name) is None:
            return f"no trial of {name} finished"
        if not _observed(search, (name, point)):
            settings = "best settings" if point == "best" else "default point"
            return f"no confirmed run of {name}'s {settings} has ended"
    both = _observed(search, ours).keys() & _observed(search, theirs).keys()
    return f"no confirmed run of either reached {_goal(search)}" if both else "no seed has a confirmed run of both"


def _row(made: Comparison) -> tuple[str, ...]:
    settings, whole = (describe(one) if one else "-" for one in (made.settings, made.whole))
    return made.variant, made.baseline, settings, made.settings_verdict, whole, made.verdict


def _note(search: Search) -> str:
    return f"The ratio is of gradient evaluations to {_goal(search)}. Below 1, the variant is cheaper."


def _goal(search: Search) -> str:
    return f"{target_label(search.spec.training.targets[-1])}%"


def _observed(search: Search, place: Place) -> dict[int, TrialRecord]:
    return {k: run for k, run in search.confirmed(*place).items() if run.observed}


def _cost(search: Search, record: TrialRecord) -> float:
    return cost(record, search.spec.training.targets[-1], "gradient_evaluations")


def _costs(search: Search, place: Place) -> list[float]:
    return [_cost(search, run) for run in _observed(search, place).values()]


def _median(search: Search, place: Place) -> str:
    costs = _costs(search, place)
    return describe(median_interval(costs)) if costs else "-"


def _p_value(interval: Interval | None) -> float:
    return 1.0 if interval is None or interval.p_value is None else interval.p_value
