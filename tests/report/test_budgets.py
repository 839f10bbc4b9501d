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
from tuner.study.trial_record import TrialRecord

Epoch = Callable[..., EpochMetrics]
VARIANTS = ("sgdm", "critical")
SECTIONS = (
    *(verdict, claims, tuned_against_default, divergence, edges, stability, importance),
    *(budgets, provenance, limits),
)


def simulated(truth: Truth | None = None, **changes: Any) -> Search:
    values = {"name": "x", "variants": VARIANTS, "trials": 4, "refine_trials": 2, "confirm": "all", **changes}
    spec = SearchSpec.from_flags(**values)
    return simulate(spec, dict.fromkeys(spec.variants, truth or Truth()))


def of_phase(search: Search, name: str, phase: str) -> list[TrialRecord]:
    return [record for record in search.trials_of(name) if record.phase == phase]


def rows_of(section: Section) -> dict[str, str]:
    return {row[0]: row[1] for row in section.tables[0].rows}


def said(section: Section) -> str:
    return " ".join(section.sentences)


def test_what_was_spent_is_what_the_logs_say() -> None:
    search = simulated(Truth(lr_best=0.03, noise=0), trials=8, refine_trials=6)
    rows = {row[:2]: row[2:] for row in budgets(search).tables[0].rows}
    for name in VARIANTS:
        phases = {
            "race": of_phase(search, name, "race"),
            "refine": of_phase(search, name, "refine"),
            "confirm, best": list(search.confirmed(name).values()),
            "confirm, default": list(search.confirmed(name, "default").values()),
        }
        for phase, records in phases.items():
            epochs = sum(len(record.history) for record in records)
            assert records, phase
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
    again = {row[:2]: row[2:] for row in budgets(search).tables[0].rows}["sgdm", "race"]
    assert int(again[2]) == int(rows["sgdm", "race"][2]) + 16 and again[6:] == ("3.0", "2.0")


def test_what_was_equal_is_said() -> None:
    search = simulated()
    refined = [f"{name} {len(of_phase(search, name, 'refine'))}" for name in VARIANTS]
    assert budgets(search).sentences == (
        "Trainings of the race that ended without failing: sgdm 4, critical 4.",
        f"Trainings of the refinement that ended without failing: {', '.join(refined)}.",
        "In each round, the variants that were left had the same number of settings, drawn alike, and the same seeds. "
        "A training ends early only where it can no longer change a round.",
        "Each training could spend 160 gradient evaluations.",
        f"All {num_confirmed(search)} confirmed runs that came to their end spent 160 gradient evaluations.",
    )
    assert "In each round" not in said(budgets(simulated(objective="pareto"))), "it has no race"


def num_confirmed(search: Search) -> int:
    return sum(record.phase == "confirm" for record in search.records.values())


def test_what_is_not_equal_is_named() -> None:
    search = simulated()
    search.trials_of("critical")[0].status = "failed"
    assert "sgdm 4, critical 3." in said(budgets(search))
    rows = {row[:2]: row[2:] for row in budgets(search).tables[0].rows}
    assert rows["critical", "race"][:2] == ("3", "1")
    search = simulated()
    run = search.confirmed("critical")[0]
    del run.history[-1]
    assert budgets(search).sentences[-1] == (
        f"Confirmed runs that came to their end spent 160 gradient evaluations, except {run.name} 144."
    )
    search = simulated()
    for record in search.trials_of("critical"):
        record.history = [dataclasses.replace(metrics, budget=320) for metrics in record.history]
    assert "The budgets are not equal: a training could spend 160 or 320 gradient evaluations." in said(budgets(search))
    search = simulated()
    search.confirmed("critical")[0].status = "diverged"  # it did not come to its end
    del search.confirmed("critical")[0].history[-1]
    assert f"All {num_confirmed(search) - 1} confirmed runs" in said(budgets(search))


def test_trainings_that_set_targets_are_a_phase_of_their_own() -> None:
    search = simulated(targets="auto")
    pilots = search.pilots()
    rows = {row[:2]: row[2:] for row in budgets(search).tables[0].rows}
    spent = sum(record.gradient_evaluations for record in pilots)
    assert len(pilots) == 3 and rows["sgdm", "pilot"][:3] == ("3", "0", str(spent))
    assert not any("given up" in phase for _, phase in rows)
    assert "pilot" in budgets(search).tables[0].note and "pilot" not in budgets(simulated()).tables[0].note
    made = rows_of(provenance(search))
    assert made["seeds of pilots"].endswith("(3)") and made["seeds of confirmed runs"].endswith("(6)")
    targets = ", ".join(f"{100 * target:.0f}%" for target in search.spec.training.targets)
    assert made["targets"].startswith(f"{targets}, by the default point of sgdm")
    assert rows_of(provenance(simulated()))["targets"] == "90%, 95%"


def test_runs_are_counted_once_and_those_given_up_too() -> None:
    search = simulated()
    best = search.best("sgdm")
    assert best
    default = with_settings(OptimizerSpec(), SPACES["sgdm"].default_settings())
    before = {row[:2]: row[2:] for row in budgets(search).tables[0].rows}
    if best.spec.optimizer == default:
        # Its runs confirm both points.
        assert before["sgdm", "confirm, best"][0] == "6" and ("sgdm", "confirm, default") not in before
    other = next(record for record in search.trials_of("sgdm") if record.spec.optimizer != best.spec.optimizer)
    best.spec, other.spec = (
        dataclasses.replace(one.spec, optimizer=two.spec.optimizer) for one, two in ((best, other), (other, best))
    )
    rows = {row[:2]: row[2:] for row in budgets(search).tables[0].rows}
    # Now no run confirms the best settings, and those that did so confirm the default point alone, or nothing.
    assert ("sgdm", "confirm, best") not in rows and int(rows["sgdm", "confirm, given up"][0]) >= 3
    assert rows["sgdm", "confirm, default"][0] == "3"
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
    # The first slot of the first round has the search's first seed.
    seeds = {record.spec.seed for name in VARIANTS for record in search.trials_of(name)}
    assert min(seeds) == 2000006 and rows["seeds of trials"] == f"2000006 to {max(seeds)} ({len(seeds)})"
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
        {"trials": 40, "round_size": 5, "alpha": 0.01, "refine_trials": 3, "sampler": "gp", "confirm": "all"},
        {"targets": "auto"},
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


def test_what_is_missing_is_told() -> None:
    search = simulated()
    failed = next(record for record in search.trials_of("critical") if record is not search.best("critical"))
    failed.status = "failed"
    search.confirmed("critical")[0].status = "running"
    text = limits(search).sentences
    assert f"critical: 1 of {len(search.trials_of('critical'))} trials failed." in text
    assert "critical: 5 of 6 fresh seeds of the best settings ended." in text
    assert any("a second failure counts as a miss" in sentence for sentence in text) == (failed.phase == "race")
    whole = said(limits(simulated()))
    assert "failed" not in whole and "fresh seeds" not in whole


def test_of_variants_that_are_out_no_confirmed_run_is_missing() -> None:
    search = simulated(confirm="left")
    search.race.out["critical"] = 0
    for run in list(search.confirmed("critical").values()):
        del search.records[run.name]
    assert "fresh seeds" not in said(limits(search))
    search.race.out.clear()
    assert "critical: 0 of 6 fresh seeds of the best settings ended." in limits(search).sentences


def test_misses_ties_and_the_grid_are_told() -> None:
    assert "No confirmed run reached 95%" in said(limits(simulated(Truth(top=0.5))))
    assert "No trial reached 95%" in said(limits(simulated(Truth(top=0.5), confirm_seeds=0)))
    tied = simulated(Truth(noise=0, jitter=0, width=1e9))
    assert "All confirmed runs reached 95% at the same time" in said(limits(tied))
    assert "Nothing was confirmed" in said(limits(simulated(confirm_seeds=0)))
    fair = limits(simulated()).sentences
    assert fair == (
        "There is one evaluation per epoch of 16 gradient evaluations. Times between two of them are interpolated on a "
        "straight line.",
        "The race compares variants that may try 4 random settings each in their own ranges. With more tuning, or in "
        "other ranges, the order may differ.",
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
    "one trial": ({"trials": 1, "round_size": 1, "refine_trials": 0}, Truth(), None),
    "no refinement": ({"refine_trials": 0}, Truth(), None),
    "no elimination": ({"alpha": 0.0, "trials": 40, "round_size": 2, "refine_trials": 0}, Truth(), None),
    "targets that are measured": ({"targets": "auto"}, Truth(), None),
    "accuracy": ({"objective": "accuracy"}, Truth(), None),
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
    spec = SearchSpec(name="x", variants=VARIANTS, trials=12, refine_trials=2, early_stopping=False)
    made = simulate(spec, dict.fromkeys(VARIANTS, Truth()), output=tmp_path)
    read = load_search("x", output=str(tmp_path))
    for section in SECTIONS:
        assert section(read) == section(made)
    assert importance(read).tables
