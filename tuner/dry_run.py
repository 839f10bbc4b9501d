"""``--dry-run``: the plan of a search and its cost, with nothing started."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from rich.console import Console
from rich.table import Table

from search_spaces import Variant
from tuner.plan import SearchSpec
from tuner.sampling import num_random
from tuner.variants import shown
from tuner.workloads.data import load_data


def print_plan(spec: SearchSpec, variants: Sequence[Variant]) -> None:
    """Prints each variant's space and the most that the search can cost.  Loads the data, for its sizes."""
    console = Console()
    table = Table(
        title=f"{spec.workload}, {spec.model}: {spec.trials} trials of each variant, {spec.epochs} epochs a trial"
    )
    for column in ("variant", "setting", "range", "default"):
        table.add_column(column)
    for variant in variants:
        for row, (name, distribution) in enumerate(variant.searched.items()):
            table.add_row(variant.name if row == 0 else "", name, shown(distribution), str(variant.default[name]))
    console.print(table)
    for variant in variants:
        console.print(f"{variant.name}: {variant.idea} ({variant.source})", highlight=False)
    data = load_data(spec.workload_spec(), torch.device("cpu"))
    num_trials = spec.trials * len(variants)
    steps = data.sizes["train"] // spec.batch_size
    budget = spec.epochs * steps
    random, model = num_random(spec.trials), spec.trials - num_random(spec.trials)
    stopping = "early stopping ends some sooner" if spec.early_stopping else "no early stopping"
    console.print(f"Data: {', '.join(f'{size} {split}' for split, size in data.sizes.items())}; {data.splits_note}")
    console.print(f"Each variant: {random} trials drawn at random, then {model} by TPE; {spec.objective}, {stopping}.")
    console.print(
        f"Cost at most: {num_trials} trials x {spec.epochs} epochs x {steps} steps "
        f"= {num_trials * budget} gradient evaluations of {spec.batch_size} images."
    )
    console.print("Nothing was started.")
