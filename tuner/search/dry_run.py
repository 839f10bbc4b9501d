"""Prints without starting anything: the variants (``--list``), or the plan of a search and its cost (``--dry-run``)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from search_spaces import GROUPS, SPACES, Variant
from tuner.core.search_spec import SearchSpec
from tuner.core.variants import shown
from tuner.study.results import POINTS
from tuner.study.sampler import num_default, num_random

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


def print_plan(spec: SearchSpec, variants: Sequence[Variant]) -> None:
    """Prints each variant's space and the most that the search can cost.  Loads the data, for its sizes."""
    import torch  # takes seconds, which --list does not have

    from tuner.workloads.data import load_data

    console = _console()
    table = _table(("variant", "setting", "range", "default", "only if"), _settings(variants))
    workload, epochs = spec.training.workload, spec.training.epochs
    table.title = f"{workload.data}, {workload.model}: {spec.trials} trials of each variant, {epochs} epochs per trial"
    console.print(table)
    for variant in variants:
        console.print(f"{variant.name}: {variant.idea} ({variant.source})", highlight=False)
    data = load_data(spec.workload_spec(), torch.device("cpu"))
    num_trials = spec.trials * len(variants)
    steps = data.sizes["train"] // workload.batch_size
    budget = epochs * steps
    random, model = num_random(spec.trials), spec.trials - num_random(spec.trials)
    stopping = "early stopping ends some trials sooner" if spec.early_stopping else "no early stopping"
    console.print(f"Data: {', '.join(f'{size} {split}' for split, size in data.sizes.items())}; {data.splits_note}")
    console.print(f"Each variant: {random} trials drawn at random, then {model} by TPE; {spec.objective}, {stopping}.")
    for variant in variants:
        if names := list(variant.enqueued)[: num_default(variant, spec.trials)]:
            console.print(f"{variant.name}: the points {', '.join(names)} replace the first {len(names)} by TPE.")
    num_tuned, num_plain = (len(variants) * spec.num_seeds(point) for point in POINTS)
    if num_tuned:
        console.print(
            f"Then {num_tuned} trainings of the best settings and {num_plain} of the default points, each with a fresh "
            "seed and in full; the test split is read once all have ended."
        )
    num_trainings = num_trials + num_tuned + num_plain
    console.print(
        f"Cost at most: {num_trainings} trainings x {epochs} epochs x {steps} steps "
        f"= {num_trainings * budget} gradient evaluations of {workload.batch_size} samples."
    )
    console.print("Nothing was started.")


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
