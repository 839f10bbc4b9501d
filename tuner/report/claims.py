"""The comparisons in words: verdicts, claims against their controls, tuned against default settings.

A sentence claims no more than its interval supports.  A sentence about *these settings* rests on the confirmed runs
alone.  A sentence about a *variant* rests on the rounds of the race, so it includes the luck of settings and seeds.
"""

from __future__ import annotations

import math
import statistics
from typing import TypeAlias

from search_spaces import SPACES
from tuner.core.metrics import target_label
from tuner.core.serialization import with_settings
from tuner.core.trial_spec import OptimizerSpec
from tuner.report.comparison import ERROR, Comparison, compare, compare_pairs, describe
from tuner.report.comparison import tuned_against_default as tuning_ratios
from tuner.report.costs import WORDS, bounded_costs, cost, one_evaluation, unit_of
from tuner.report.document import Section, Table
from tuner.report.intervals import Interval, holm, median_interval, paired_ratio
from tuner.report.verdict import answer, error_rate, in_words, pair_sentence, random_settings
from tuner.study.results import Search
from tuner.study.trial_record import Point, TrialRecord

Place: TypeAlias = tuple[str, Point]
"""A variant's name and one of its two points."""
COLUMNS = (
    "variant",
    "against",
    "rounds won",
    "of",
    "share won",
    "evidence",
    "needed",
    "the variant is",
    "ratio, these settings",
    "these settings are",
)
UNCONFIRMED = "Nothing was confirmed (--confirm-seeds 0), so no settings can be compared."


def verdict(search: Search) -> Section:
    """Each variant against the baseline, by rounds and by the chosen settings, and their table."""
    made = compare(search)
    if not made:
        return Section("Verdict", answer(search))
    sentences = [pair_sentence(search, one) for one in made] if search.race.rounds else list(answer(search))
    sentences += [_settings(search, one) for one in made if one.settings]
    note = f"{_note(search)} {_of_rounds(search)}" if search.spec.num_rounds else _note(search)
    if number := made[0].num_settings:
        note += (
            " Verdicts on settings hold for these settings only, and are adjusted for "
            f"{number} comparison{'s' if number > 1 else ''} (Holm's method)."
        )
    rows = tuple(_row(search, one) for one in made)
    table = Table("verdict", f"Each variant against {search.baseline}", COLUMNS, rows, note)
    return Section("Verdict", tuple(sentences), tables=(table,))


def _of_rounds(search: Search) -> str:
    """How the rounds decide between two variants."""
    spec, left = search.spec, search.race.left
    best = "fastest" if search.race.timed else "best"
    said = [
        f"A round is won by the variant with the {best} of {random_settings(search)}.",
        "A verdict on a variant needs the evidence in the table.",
    ]
    if not spec.alpha:
        return " ".join([*said, "With --alpha 0, no evidence is enough."])
    alone = len(left) == 1
    if alone:
        said.append(
            f"{left[0]} is the only one left, and so the {best} (error rate {error_rate(search)}): its own comparisons "
            "need no more than puts a variant out."
        )
    if not alone or len(search.variants) > 2:
        said.append(
            f"The error rate of {'the others' if alone else 'all of them'} together is {error_rate(search)}, after "
            "however many rounds one looks."
        )
    return " ".join(said)


def _settings(search: Search, made: Comparison) -> str:
    assert made.settings is not None
    who = f"The settings chosen for {made.variant}"
    if made.settings_verdict == "undecided":
        why = _why(made.settings, made.settings_p_value, made.num_settings)
        return f"{who} are not shown to differ from {made.baseline}'s: {made.variant} {_reached(search, made)}{why}."
    return (
        f"{who} are {made.settings_verdict} than {made.baseline}'s: with equal seeds, {made.variant} "
        f"{_reached(search, made)}."
    )


def claims(search: Search) -> Section:
    """Each claim against the controls that test it: how much of the claim's effect they have as well."""
    names = [variant.name for variant in search.variants]
    pairs = [(v.controls, v.name) for v in search.variants if v.controls is not None and v.controls in names]
    direct = compare_pairs(search, pairs)
    effects = {made.variant: made for made in compare(search)}
    middles = [_middle(search, made.variant, made.baseline) for made in direct]
    made = [k for k, middle in enumerate(middles) if middle]
    adjusted = dict(zip(made, holm([_p_value(middles[k]) for k in made]), strict=True))
    sentences = [
        _claim(search, one, effects, middles[k] if adjusted.get(k, 1.0) <= ERROR else None)
        for k, one in enumerate(direct)
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
        f"{_note(search)} Verdicts on variants need evidence that is enough for all pairs of variants at once; for the "
        "only one left, the fastest, as much is enough as puts a variant out. Most of the gain of the settings is the "
        "control's if its cost is shown to lie below the geometric mean of the claim's and the baseline's costs. This "
        "test is by equal seeds and is adjusted for all controls (Holm's method)."
    )
    rows = tuple(_row(search, made) for made in direct)
    table = Table("claims", "Each claim against its control", COLUMNS, rows, note)
    return Section("Claims and controls", tuple(sentences), tables=(table,) if direct else ())


def _claim(search: Search, direct: Comparison, effects: dict[str, Comparison], middle: Interval | None) -> str:
    claim, control = direct.variant, direct.baseline
    effect, other = effects.get(claim), effects.get(control)
    said = ""
    if effect and effect.settings and other and other.settings:
        # By seeds alone, so the control's share is known for these settings only.
        ours, theirs = (_reached(search, made) for made in (effect, other))
        said = f"{claim} {ours}. Its control {control} {theirs}. "
        if effect.settings_verdict != "faster":
            said += "No gain is shown that the control could explain. "
        elif middle and middle.decided and not middle.low <= 1 <= middle.high:
            said += f"Most of the gain of these settings is {'not ' if middle.low > 1 else ''}the control's. "
        else:
            said += "Whether most of the gain is the control's is undecided. "
    said += pair_sentence(search, direct)
    if direct.settings is None:
        return said
    if direct.settings_verdict == "undecided":
        found = "no difference between the settings is shown" + _why(
            direct.settings, direct.settings_p_value, direct.num_settings
        )
    else:
        found = f"these settings are {direct.settings_verdict}"
    return f"{said} With the chosen settings, {claim} {_reached(search, direct)}: {found}."


def _middle(search: Search, claim: str, control: str) -> Interval | None:
    # The control's cost over the geometric mean of the claim's and the baseline's costs, by equal seeds.  Below 1, the
    # control is nearer to the claim: it has more than half of the gain on a logarithmic scale.
    if search.baseline in (claim, control):
        return None
    runs = [_observed(search, (name, "best")) for name in (control, claim, search.baseline)]
    seeds = [k for k in runs[0] if k in runs[1] and k in runs[2]]
    target, unit = search.spec.training.targets[-1], unit_of(search)
    costs = [bounded_costs(search, [some[k] for some in runs], target, unit) for k in seeds]
    middles = [math.sqrt(claimed * based) for _, claimed, based in costs]
    if not costs:
        return None
    resolution = statistics.fmean(one_evaluation(search, some[k], unit) for some in runs for k in seeds)
    return paired_ratio([ours for ours, *_ in costs], middles, resolution=resolution)


def tuned_against_default(search: Search) -> Section:
    """The best settings against the variant's own default point, by equal seeds."""
    if not search.spec.confirm_seeds:
        return Section("Tuned against default", (UNCONFIRMED,))
    ratios = tuning_ratios(search)
    # As in the comparisons: one that the race has put out is no test.
    tested = [name for name, ratio in ratios.items() if ratio or name in search.refined]
    adjusted = dict(zip(tested, holm([_p_value(ratios[name]) for name in tested]), strict=True))
    sentences, rows = [], []
    for variant, (name, ratio) in zip(search.variants, ratios.items(), strict=True):
        tuned: Place = (name, "best")
        default: Place = (name, "default")
        best = search.best(name)
        default_optimizer = with_settings(OptimizerSpec(), variant.default_settings())
        if best and best.spec.optimizer == search.spec.trial_spec(default_optimizer, 0).optimizer:
            sentences.append(f"{name}: the best settings found are the default point.")
        elif ratio is None:
            missing = _missing(search, tuned, default)
            sentences.append(f"{name}: tuned and default settings cannot be compared, because {missing}.")
        else:
            p_value = adjusted[name]
            found = f"the tuned settings are not shown to be better{_why(ratio, p_value, len(tested))}"
            if ratio.decided and p_value <= ERROR and not ratio.low <= 1 <= ratio.high:
                found = "tuning paid" if ratio.high < 1 else "the default point is faster than the tuned settings"
            sentences.append(f"The settings tuned for {name} {_reached_at(search, ratio, tuned, default)}: {found}.")
        rows.append((name, _median(search, tuned), _median(search, default), describe(ratio) if ratio else "-"))
    note = (
        f"The numbers are {WORDS[unit_of(search)]} to {_goal(search)}. Verdicts are adjusted for {len(tested)} "
        f"variant{'s' if len(tested) > 1 else ''} (Holm's method)."
    )
    columns = ("variant", "best settings", "default point", "ratio, by equal seeds")
    table = Table("tuned_against_default", "Tuned against default", columns, tuple(rows), note)
    return Section("Tuned against default", tuple(sentences), tables=(table,))


def _reached(search: Search, made: Comparison) -> str:
    assert made.settings is not None
    return _reached_at(search, made.settings, (made.variant, "best"), (made.baseline, "best"))


def _reached_at(search: Search, interval: Interval, ours: Place, theirs: Place) -> str:
    who, whose = (ours[0], theirs[0]) if theirs[1] == "best" else ("the tuned settings", "the default point")
    goal, costs, others = _goal(search), _costs(search, ours), _costs(search, theirs)
    runs, other_runs = (f"{sum(map(math.isfinite, c))} of {len(c)} confirmed runs" for c in (costs, others))
    missed = ""
    if math.inf in [*costs, *others]:
        past = "later than any time" if search.spec.cost == "seconds" else "one past the budget"
        missed = f" ({who} reached it in {runs}, {whose} in {other_runs}; a miss counts as {past})"
    times = "of" if interval.estimate <= 1 else "times"
    return f"reached {goal} in {describe(interval)} {times} {whose}'s {WORDS[unit_of(search)]}{missed}"


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
        if name not in search.refined and not search.confirmed(name, point):
            return f"{name} is out of the race, and only --confirm all confirms such a variant"
        if search.best(name) is None:
            return f"no trial of {name} finished"
        if not _observed(search, (name, point)):
            settings = "best settings" if point == "best" else "default point"
            return f"no confirmed run of {name}'s {settings} has ended"
    both = _observed(search, ours).keys() & _observed(search, theirs).keys()
    return f"no confirmed run of either reached {_goal(search)}" if both else "no seed has a confirmed run of both"


def _row(search: Search, made: Comparison) -> tuple[str, ...]:
    ordered, (low, high) = made.won + made.lost, made.share
    return (
        made.variant,
        made.baseline,
        str(made.won),
        str(ordered),
        f"[{low:.0%}, {high:.0%}]" if ordered else "-",
        f"{made.evidence:.3g}",
        f"{made.threshold:.3g}" if math.isfinite(made.threshold) else "-",
        in_words(search, made.verdict),
        describe(made.settings) if made.settings else "-",
        made.settings_verdict if made.settings else "-",
    )


def _note(search: Search) -> str:
    return f"The ratio is of {WORDS[unit_of(search)]} to {_goal(search)}. Below 1, the variant is cheaper."


def _goal(search: Search) -> str:
    return f"{target_label(search.spec.training.targets[-1])}%"


def _observed(search: Search, place: Place) -> dict[int, TrialRecord]:
    return {k: run for k, run in search.confirmed(*place).items() if run.observed and run.history}


def _cost(search: Search, record: TrialRecord) -> float:
    return cost(search, record, search.spec.training.targets[-1], unit_of(search))


def _costs(search: Search, place: Place) -> list[float]:
    return [_cost(search, run) for run in _observed(search, place).values()]


def _median(search: Search, place: Place) -> str:
    costs = _costs(search, place)
    return describe(median_interval(costs)) if costs else "-"


def _p_value(interval: Interval | None) -> float:
    return 1.0 if interval is None or interval.p_value is None else interval.p_value
