"""Prints without starting anything: the variants (``--list``), or the plan of a search and its cost (``--dry-run``)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console
from rich.table import Table

from search_spaces import GROUPS, SPACES, Variant
from tuner import race
from tuner.core.search_spec import NUM_FINALISTS, NUM_REPEATS, SearchSpec
from tuner.core.variants import shown
from tuner.study.refinement import given_points, most_repeats
from tuner.study.rounds import FEWEST
from tuner.study.targets import NUM_PILOTS
from tuner.study.timings import NUM_TIMINGS, timing_epochs
from tuner.study.trial_record import POINTS
from tuner.workloads.check import Prepared

UNBOUNDED = 10_000
"""Columns of output that goes to no terminal: lines are not wrapped, so that grep finds them whole."""


def print_variants() -> None:
    """Prints every known variant: what it is, and what it searches."""
    console = _console()
    console.print(_table(("variant", "group", "controls", "idea", "source"), map(_described, SPACES.values())))
    console.print(_table(("variant", "setting", "range", "default", "only if"), _settings(SPACES.values())))
    points = [
        (f"{variant.name}@{name}", " ".join(f"{setting}={value}" for setting, value in changes.items()))
        for variant in SPACES.values()
        for name, changes in variant.points.items()
    ]
    console.print(_table(("named point", "its default"), points))


def print_plan(spec: SearchSpec, variants: Sequence[Variant], data: Prepared) -> None:
    """Prints each variant's space and the most that the search can cost."""
    console = _console()
    table = _table(("variant", "setting", "range", "default", "only if"), _settings(variants))
    workload, epochs = spec.training.workload, spec.training.epochs
    table.title = f"{workload.data}, {workload.model}: {len(variants)} variants, {epochs} epochs per training"
    console.print(table)
    for variant in variants:
        console.print(f"{variant.name}: {variant.idea} ({variant.source})", highlight=False)
    steps = data.sizes["train"] // workload.batch_size
    budget = epochs * steps
    console.print(f"Data: {', '.join(f'{size} {split}' for split, size in data.sizes.items())}; {data.note}")
    for line in plan(spec, variants):
        console.print(line, highlight=False)
    num_trainings = most_trainings(spec, len(variants))
    console.print(
        f"Cost at most: {num_trainings} trainings x {epochs} epochs x {steps} steps "
        f"= {num_trainings * budget} gradient evaluations of {workload.batch_size} samples. Most end much sooner."
    )
    if spec.cost == "seconds":
        num_timings, length = NUM_TIMINGS * len(variants), timing_epochs(steps)
        console.print(
            f"Timings besides: {num_timings} trainings x {length} epochs x {steps} steps "
            f"= {num_timings * length * steps} gradient evaluations."
        )
    console.print("Nothing was started.")


def plan(spec: SearchSpec, variants: Sequence[Variant]) -> Iterator[str]:
    """What a search trains, in the order in which it does; one sentence or more per line."""
    if spec.cost == "seconds":
        yield (
            f"First {NUM_TIMINGS} short trainings of each variant's default point, one at a time, measure its seconds "
            "per gradient evaluation, by which the race is run."
        )
    if spec.targets == "auto":
        baseline = spec.baseline_among([variant.name for variant in variants])
        yield (
            f"{'Then' if spec.cost == 'seconds' else 'First'} {NUM_PILOTS} trainings of {baseline}'s default point set "
            "the targets: what it reaches at a third and at four fifths of its budget."
        )
    num_raced, num_settings = _num_trials(spec, len(variants))
    if num_raced:
        yield from _race(spec, len(variants))
    else:
        why = "pareto has two goals, which give no order" if not spec.num_rounds else "there is one variant"
        yield f"No race: {why}."
    if num_settings:
        whose = "Then each variant that is refined" if num_raced else "Each variant"
        yield f"{whose} tries {num_settings} settings: the default point first, the last ones by {spec.sampler}."
        for variant in variants:
            if points := [name for name in given_points(variant, num_settings) if name != "default"]:
                yield f"{variant.name} tries the points {', '.join(points)} after its default point."
        yield (
            f"The best {NUM_FINALISTS} of all and the default point are trained with {NUM_REPEATS} more seeds, and the "
            "best mean is chosen."
        )
    if spec.confirm_seeds:
        yield (
            f"Then {spec.num_seeds('best')} trainings of the chosen settings and {spec.num_seeds('default')} of the "
            "default point, each with a fresh seed and in full; the test split is read once all have ended."
        )
    if num_raced and (num_settings or spec.confirm_seeds):
        whose = "All variants" if spec.confirm == "all" else "Only the variants left in the race, and the baseline,"
        yield f"{whose} are refined and confirmed."


def most_trainings(spec: SearchSpec, num_variants: int) -> int:
    """Trainings of a search in which no variant is ever out."""
    num_raced, num_settings = _num_trials(spec, num_variants)
    num_each = num_raced + num_settings + most_repeats(num_raced, num_settings) + sum(map(spec.num_seeds, POINTS))
    return num_variants * num_each + (NUM_PILOTS if spec.targets == "auto" else 0)


def _num_trials(spec: SearchSpec, num_variants: int) -> tuple[int, int]:
    """Trials of a variant in the race, and settings that it tries after it."""
    if not spec.num_rounds or num_variants < 2:
        return 0, spec.trials
    return spec.num_rounds * spec.round_size, spec.refine_trials


def _race(spec: SearchSpec, num_variants: int) -> Iterator[str]:
    rounds = (
        f"Race: at most {spec.num_rounds} rounds, in each of which every variant that is left tries "
        f"{spec.round_size} random settings."
    )
    if not spec.alpha:
        yield f"{rounds} None is put out (--alpha 0)."
    else:
        needed = race.wins_needed(max(num_variants, FEWEST), spec.alpha)
        yield (
            f"{rounds} One is out once another is shown to be faster, after {needed} straight wins or more, with an "
            f"error rate of {spec.alpha:.2g}."
        )
        if needed > spec.num_rounds:
            yield f"These rounds can put nobody out: --trials {needed * spec.round_size} is the least that can."
    if rest := spec.trials % spec.round_size:
        yield f"{rest} of {spec.trials} trials are left over, because a round has {spec.round_size}."


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=UNBOUNDED)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table()
    for column in columns:
        table.add_column(column, overflow="fold")  # the default would cut names that are too long
    for row in rows:
        table.add_row(*row)
    return table


def _described(variant: Variant) -> tuple[str, ...]:
    group = next(group for group, names in GROUPS.items() if variant.name in names)
    return variant.name, group, variant.controls or "", variant.idea, variant.source


def _settings(variants: Iterable[Variant]) -> Iterable[tuple[str, ...]]:
    for variant in variants:
        for name, distribution in variant.searched.items():
            parent, values = variant.when.get(name, ("", ()))
            condition = f"{parent}={','.join(map(str, values))}" if parent else ""
            yield variant.name, name, shown(distribution), str(variant.default[name]), condition
