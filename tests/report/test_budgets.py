"""What a search spent, by its logs; what made it; what it cannot say."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.simulated_search import Truth, simulate
from search_spaces import SPACES
from tuner.core.metrics import EpochMetrics
from tuner.core.search_spec import SearchSpec
from tuner.core.serialization import with_settings
from tuner.core.trial_spec import OptimizerSpec
from tuner.report.budgets import NOT_REPEATED, budgets, command, limits, provenance, wall_seconds
from tuner.report.claims import claims, tuned_against_default, verdict
from tuner.report.document import Section
from tuner.report.findings import divergence, edges, importance, stability
from tuner.search.arguments import parse
from tuner.study.results import Search, load_search
from tuner.study.search_folder import Process

Epoch = Callable[..., EpochMetrics]
VARIANTS = ("sgdm", "critical")
SECTIONS = (
    *(verdict, claims, tuned_against_default, divergence, edges, stability, importance),
    *(budgets, provenance, limits),
)


def simulated(truth: Truth | None = None, **changes: Any) -> Search:
    spec = SearchSpec.from_flags(**{"name": "x", "variants": VARIANTS, "trials": 4, **changes})
    return simulate(spec, dict.fromkeys(spec.variants, truth or Truth()))


def rows_of(section: Section) -> dict[str, str]:
    return {row[0]: row[1] for row in section.tables[0].rows}


def said(section: Section) -> str:
    return " ".join(section.sentences)


def test_what_was_spent_is_what_the_logs_say() -> None:
    search = simulated(trials=8)
    rows = {row[:2]: row[2:] for row in budgets(search).tables[0].rows}
    for name in VARIANTS:
        phases = {
            "explore": search.trials_of(name),
            "confirm, best": list(search.confirmed(name).values()),
            "confirm, default": list(search.confirmed(name, "default").values()),
        }
        for phase, records in phases.items():
            epochs = sum(len(record.history) for record in records)
            assert rows[name, phase][:4] == (str(len(records)), "0", str(16 * epochs), str(epochs))
            assert rows[name, phase][5] == f"{0.02 * epochs:.1f}"
    every = [record for record in search.records.values() if record.history]
    assert rows["all", "all"][2] == str(sum(record.history[-1].gradient_evaluations for record in every))
    assert rows["all", "all"][4] == f"{sum(record.history[-1].seconds for record in every):.1f}"
    # Not from the plan: an epoch more in a log is an epoch more in the table.
    record = search.trials_of("sgdm")[0]
    last = record.history[-1]
    more = dataclasses.replace(last, epoch=last.epoch + 1, gradient_evaluations=last.gradient_evaluations + 16)
    record.history.append(dataclasses.replace(more, compile_seconds=3.0, curvature_seconds=2.0))
    again = {row[:2]: row[2:] for row in budgets(search).tables[0].rows}["sgdm", "explore"]
    assert int(again[2]) == int(rows["sgdm", "explore"][2]) + 16 and again[6:] == ("3.0", "2.0")


def test_equal_budgets_are_called_equal() -> None:
    search = simulated()
    assert budgets(search).sentences == (
        "Trials that ended without failing: sgdm 4, critical 4. Each could spend 160 gradient evaluations.",
        "All 18 confirmed runs that came to their end spent 160 gradient evaluations.",
        "The budgets are equal.",
    )


def test_what_is_not_equal_is_named() -> None:
    search = simulated()
    search.trials_of("critical")[0].status = "failed"
    assert "sgdm 4, critical 3." in said(budgets(search)) and said(budgets(search)).endswith(
        "The budgets are not equal."
    )
    rows = {row[:2]: row[2:] for row in budgets(search).tables[0].rows}
    assert rows["critical", "explore"][:2] == ("3", "1")
    search = simulated()
    run = search.confirmed("critical")[0]
    del run.history[-1]
    assert budgets(search).sentences[1:] == (
        f"Confirmed runs that came to their end spent 160 gradient evaluations, except {run.name} 144.",
        "The budgets are not equal.",
    )
    search = simulated()
    for record in search.trials_of("critical"):
        record.history = [dataclasses.replace(metrics, budget=320) for metrics in record.history]
    assert "160 or 320" in said(budgets(search)) and said(budgets(search)).endswith("The budgets are not equal.")
    search = simulated()
    search.confirmed("critical")[0].status = "diverged"  # it did not come to its end
    del search.confirmed("critical")[0].history[-1]
    assert said(budgets(search)).endswith("The budgets are equal.")


def test_runs_are_counted_once_and_those_given_up_too() -> None:
    search = simulated()
    best = search.best("sgdm")
    assert best
    default = with_settings(OptimizerSpec(), SPACES["sgdm"].default_settings())
    best.spec = dataclasses.replace(best.spec, optimizer=default)
    rows = {row[:2]: row[2:] for row in budgets(search).tables[0].rows}
    # Now the default point's three runs confirm the best settings, and the six that did so confirm nothing.
    assert rows["sgdm", "confirm, best"][0] == "3" and rows["sgdm", "confirm, given up"][0] == "6"
    assert ("sgdm", "confirm, default") not in rows
    assert rows["all", "all"][0] == str(len(search.records))


def test_wall_time_ends_with_the_last_epoch_where_a_program_was_killed(epoch: Epoch) -> None:
    search = simulated()
    assert wall_seconds(search) == 60
    versions = {"torch": "1"}
    search.processes = (
        Process(1000.0, None, versions, "one", 1),
        Process(2000.0, None, versions, "one", 1),
        Process(3000.0, 3007.0, {"torch": "2"}, "other", 2),
        Process(4000.0, None, versions, "one", 1),
    )
    record = next(iter(search.records.values()))
    search.records = {record.name: record}
    record.history = [epoch(i, 0.5, finished_at=at) for i, at in enumerate((1010.0, 1020.0, 3005.0), start=1)]
    assert wall_seconds(search) == 20 + 0 + 7 + 0
    rows = rows_of(provenance(search))
    assert rows["programs"] == "4" and rows["wall time"] == "0:00:27"
    assert rows["hardware"] == "one, 1 at a time; other, 2 at a time"
    assert [row[1] for row in provenance(search).tables[0].rows if row[0] == "versions"] == ["torch 1", "torch 2"]


def test_provenance_is_of_this_search() -> None:
    search = simulated(seed=2)
    rows = rows_of(provenance(search))
    assert rows["seeds of trials"] == "2000006 to 2000009 (4)"
    assert rows["seeds of confirmed runs"] == "2500006 to 2500011 (6)"
    assert rows["data"] == "a formula; formula" and rows["versions"] == "python 3.11, torch 2.15"
    assert rows["gradient evaluations"] == str(sum(r.gradient_evaluations for r in search.records.values()))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"variants": ("sgdm",), "targets": (0.5, 0.75), "space": ("lr.peak=1e-4:1:log", "momentum.value=0.9")},
        {"early_stopping": False, "compile": True, "seed": 3, "precision": "float32", "gpus_per_trial": 0.25},
        {"confirm_seeds": 0, "baseline": "critical", "time_budget": "20m", "name": "n", "output": "elsewhere"},
        {"data_dir": "a folder", "workload": "cifar10", "download": True},
    ],
)
def test_the_command_makes_the_same_search(changes: dict[str, Any]) -> None:
    spec = SearchSpec.from_flags(**changes)
    words = shlex.split(command(spec))
    assert words[:3] == ["python", "-m", "tuner.search"]
    again, search_id = parse(words[3:])
    assert search_id is None
    repeated = again.flags()
    for name, value in spec.flags().items():
        if name not in NOT_REPEATED:
            assert repeated[name] == value, name


def test_what_has_not_ended_is_told() -> None:
    search = simulated()
    for name, status in (("sgdm", "running"), ("critical", "failed")):
        next(record for record in search.trials_of(name) if record is not search.best(name)).status = status
    search.confirmed("critical")[0].status = "running"
    text = limits(search).sentences
    assert "sgdm: 3 of 4 trials have ended. The rest may change the result." in text
    assert "critical: 1 trials failed and are left out." in text
    assert "critical: 5 of 6 fresh seeds of the best settings ended." in text
    assert not any("have ended" in sentence or "fresh seeds" in sentence for sentence in limits(simulated()).sentences)


def test_few_seeds_and_none_are_told() -> None:
    assert "5 fresh seeds decide nothing" in said(limits(simulated(confirm_seeds=5)))
    assert "decide nothing" not in said(limits(simulated(confirm_seeds=6))), "one comparison"
    many = SearchSpec(name="x", variants=("sgdm", "adamw", "critical", "lpsgdm"), trials=4, confirm_seeds=6)
    told = said(limits(simulate(many, dict.fromkeys(many.variants, Truth()))))
    assert "6 fresh seeds decide nothing" in told and "3 comparisons need at least 7" in told
    assert "Nothing was confirmed" in said(limits(simulated(confirm_seeds=0)))


def test_misses_ties_and_the_grid_are_told() -> None:
    assert "No confirmed run reached 95%" in said(limits(simulated(Truth(top=0.5))))
    assert "No trial reached 95%" in said(limits(simulated(Truth(top=0.5), confirm_seeds=0)))
    tied = simulated(Truth(noise=0, jitter=0, width=1e9))
    assert "All confirmed runs reached 95% at the same evaluation" in said(limits(tied))
    fair = limits(simulated()).sentences
    assert fair == (
        "There is one evaluation per epoch of 16 gradient evaluations, so finer differences are not seen.",
        "A miss means that the target was not reached within 10 epochs. Longer trainings were not tested.",
        "The search covers one workload (digits, resnet8). It shows nothing about other workloads.",
    )


def empty(search: Search) -> None:
    search.records = {}
    search.processes = ()


def stopped_early(search: Search) -> None:
    for number, record in enumerate(search.records.values()):
        record.status = ("pending", "running", "failed", record.status)[number % 4]
        if record.status == "pending":
            record.history = []


def failed(search: Search) -> None:
    for record in search.records.values():
        record.status, record.history = "failed", []


ODD: dict[str, tuple[dict[str, Any], Truth, Callable[[Search], None] | None]] = {
    "empty": ({}, Truth(), empty),
    "unfinished": ({}, Truth(), stopped_early),
    "all failed": ({}, Truth(), failed),
    "all diverged": ({}, Truth(lr_limit=1e-9), None),
    "one trial": ({"trials": 1}, Truth(), None),
    "one epoch": ({"epochs": 1}, Truth(), None),
    "one variant": ({"variants": ("sgdm",)}, Truth(), None),
    "unconfirmed": ({"confirm_seeds": 0}, Truth(), None),
    "one seed": ({"confirm_seeds": 1}, Truth(), None),
    "no target reached": ({"targets": (0.9999,)}, Truth(top=0.5), None),
    "two objectives": ({"objective": "pareto"}, Truth(), None),
    "claims and controls": ({"variants": ("sgdm", "critical", "critical-matched", "hybrid")}, Truth(), None),
}


@pytest.mark.parametrize("odd", ODD)
def test_every_section_copes_with_odd_searches(odd: str) -> None:
    changes, truth, change = ODD[odd]
    search = simulated(truth, **changes)
    if change:
        change(search)
    for section in SECTIONS:
        made = section(search)
        assert made.sentences or made.tables
        for sentence in made.sentences:
            assert sentence.endswith(".") and "nan" not in sentence and "None" not in sentence
        for table in made.tables:
            assert all(len(row) == len(table.columns) and all(row) for row in table.rows)


def test_a_search_read_from_disk_says_the_same(tmp_path: Path, quick_sqlite: None) -> None:
    spec = SearchSpec(name="x", variants=VARIANTS, trials=12, early_stopping=False)
    made = simulate(spec, dict.fromkeys(VARIANTS, Truth()), output=tmp_path)
    read = load_search("x", output=str(tmp_path))
    for section in SECTIONS:
        assert section(read) == section(made)
    assert importance(read).tables
