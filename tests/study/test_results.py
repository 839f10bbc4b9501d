"""What a search has come to, read from disk: the same as in memory, whatever state it is in, and nothing is written."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
from optuna.trial import TrialState
from pandas.testing import assert_frame_equal

from benchmarks.simulated_search import Truth, curve, simulate
from search_spaces import SPACES
from tuner import load_search
from tuner.core.errors import InvalidInput
from tuner.core.metrics import EpochMetrics, time_to_target
from tuner.core.search_spec import FIRST_REFINE, NUM_FINALISTS, NUM_REPEATS, Objective, SearchSpec
from tuner.core.serialization import with_settings
from tuner.core.trial_spec import OptimizerSpec
from tuner.race import evidence
from tuner.study import search_folder, trial_folder
from tuner.study.optuna_study import VariantStudy, close_storage, existing_storage, open_storage, open_studies
from tuner.study.recorder import Recorder
from tuner.study.results import Search
from tuner.study.trial_record import TrialRecord

VARIANTS = ("sgdm", "hybrid")
SPEC = SearchSpec.from_flags(
    name="first", variants=VARIANTS, trials=13, refine_trials=2, confirm_seeds=3, epochs=4, targets=(0.5, 0.7)
)
"""A race of three rounds, which decides nothing."""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, quick_sqlite: None) -> Search:
    """A finished search, in memory and in its folder; it has trials of every ending but failed ones."""
    # The default points are far from the best learning rate, so that other settings are chosen.
    truths = {"sgdm": Truth(lr_limit=0.4, lr_best=0.3, width=0.5), "hybrid": Truth(speed=0.4, lr_best=0.3, width=0.5)}
    search = simulate(SPEC, truths, output=tmp_path_factory.mktemp("runs"))
    assert {record.status for record in search.records.values()} == {"finished", "stopped", "diverged"}
    return search


@pytest.fixture
def copied(written: Search, tmp_path: Path) -> Path:
    """Its folder, copied into a folder of searches of this test's own."""
    with sqlite3.connect(written.folder / "optuna.db") as database:
        database.execute("pragma wal_checkpoint(truncate)")
    return Path(shutil.copytree(written.folder, tmp_path / "first", ignore=shutil.ignore_patterns("*-wal", "*-shm")))


def test_a_search_is_read_as_it_was_written(written: Search) -> None:
    read = load_search("first", output=str(written.folder.parent))
    assert read.records == written.records
    assert read.race.rounds == written.race.rounds and read.race.wins == written.race.wins
    assert len(read.race.rounds) == 3 and not read.race.out and read.race.is_over
    assert read.variants == written.variants and read.folder == written.folder
    assert (read.search_id, read.splits, read.processes) == (written.search_id, written.splits, written.processes)
    assert read.spec == search_folder.load(str(written.folder.parent), "first")[0]
    assert read.baseline == "sgdm"
    for variant in VARIANTS:
        best = written.best(variant)
        assert best and read.best(variant) == best
        for point in ("best", "default"):
            assert read.confirmed(variant, point) == written.confirmed(variant, point)
            assert len(read.confirmed(variant, point)) == SPEC.num_seeds(point)
    assert_frame_equal(read.rounds(), written.rounds())
    assert_frame_equal(read.evidence(), written.evidence())
    for ours, theirs in ((read.trials(), written.trials()), (read.curves(), written.curves())):
        # Confirmed runs come by the names of their variants, as which were made first is not kept.
        ours, theirs = (frame.sort_values("name", kind="stable", ignore_index=True) for frame in (ours, theirs))
        assert_frame_equal(ours, theirs, check_like=True)


@pytest.mark.parametrize("objective", ["time-to-target", "accuracy"])
@pytest.mark.parametrize("refine_trials", [0, 3])
def test_best_is_the_best_mean_of_the_settings_that_were_repeated_or_else_the_best_training(
    objective: Objective, refine_trials: int
) -> None:
    training = replace(SPEC.training, epochs=8)
    spec = replace(SPEC, objective=objective, refine_trials=refine_trials, training=training)
    search = simulate(spec, {"sgdm": Truth(lr_limit=0.3, noise=0.4), "hybrid": Truth(speed=0.4, noise=0.4)})
    for variant in VARIANTS:
        values: dict[OptimizerSpec, list[float]] = {}
        for record in search.trials_of(variant):
            reached = time_to_target(record.history, 0.7)
            value = math.log(reached.gradient_evaluations if reached else 129)
            value = -record.history[-1].validation_accuracy if objective == "accuracy" else value
            if record.status == "finished" and (record.repeats is not None or not refine_trials):
                values.setdefault(record.spec.optimizer, []).append(value)
        # A divergence, of either objective the worst, would be among the repeats and not among these.
        compared = {
            settings: found for settings, found in values.items() if len(found) == (NUM_REPEATS if refine_trials else 1)
        }
        assert len(compared) > (1 if refine_trials else 3), "nothing to choose from"
        best = search.best(variant)
        assert best and best.spec.optimizer == min(compared, key=lambda settings: sum(compared[settings]))
        assert best.repeats is None


def test_a_row_of_rounds_is_a_variant_in_a_counted_round(written: Search) -> None:
    frame = written.rounds()
    assert list(frame.columns) == ["round", "variant", "time", "end"] and len(frame) == 3 * 2
    for row in frame.to_dict("records"):
        one = written.race.rounds[row["round"]]
        assert (row["time"], row["end"]) == (one.results[row["variant"]], one.end)
    empty = Search(SPEC, "id", (SPACES["sgdm"], SPACES["hybrid"]), Path("first"), {})
    assert list(empty.rounds().columns) == list(frame.columns) and empty.rounds().empty


def test_a_row_of_evidence_is_an_ordered_pair(written: Search) -> None:
    rows = {(row["variant"], row["against"]): row for row in written.evidence().to_dict("records")}
    assert set(rows) == {("sgdm", "hybrid"), ("hybrid", "sgdm")}
    for (i, j), row in rows.items():
        assert (row["won"], row["lost"]) == (written.race.wins[i, j], written.race.wins[j, i])
        assert row["evidence"] == evidence(row["won"], row["lost"])
        assert row["threshold"] == written.race.pair_threshold(i, j) and not row["out"]
    assert rows["sgdm", "hybrid"]["won"] + rows["sgdm", "hybrid"]["lost"] > 1


def test_a_row_of_trials_holds_settings_and_final_metrics(written: Search) -> None:
    frame = written.trials().set_index("name")
    assert list(frame.index) == list(written.records)
    rows: dict[Any, dict[Any, Any]] = frame.to_dict("index")
    for name, record in written.records.items():
        row, history = rows[name], record.history
        assert (row["variant"], row["phase"], row["status"]) == (record.variant, record.phase, record.status)
        assert row["seed"] == record.spec.seed
        assert row["gradient_evaluations"] == 16 * len(history) and row["seconds"] == history[-1].seconds
        assert row["lr.peak"] == record.spec.optimizer.lr.peak
        assert row["momentum.schedule"] == {"sgdm": "constant", "hybrid": "hybrid"}[record.variant]
        by_fraction = record.spec.optimizer.momentum.switch == "fraction" and record.variant == "hybrid"
        assert math.isnan(row["momentum.switch_fraction"]) == (not by_fraction), "of no use to the others"
        reached = time_to_target(history, 0.7)
        shown = row["speed/gradient_evaluations_to_70"]
        assert shown == reached.gradient_evaluations if reached else math.isnan(shown)
        for name in ("round", "slot", "repeats"):
            place = record.place.get(name)
            assert row[name] == place if place is not None else pd.isna(row[name])
        assert row["speed/best_accuracy"] == max([0.0, *(m.validation_accuracy for m in history if not m.diverged)])
        assert row["test/accuracy"] == record.test.accuracy if record.test else math.isnan(row["test/accuracy"])
    counts = frame.groupby(["variant", "phase"]).size().to_dict()
    for variant in VARIANTS:
        # Two settings, and repeats of the best ones and of the default point, which may be one of them.
        num_finalists = (NUM_FINALISTS, NUM_FINALISTS + 1)
        assert counts.pop((variant, "refine")) in [2 + NUM_REPEATS * number for number in num_finalists]
        assert (counts.pop((variant, "race")), counts.pop((variant, "confirm"))) == (12, 3 + 2)
    assert not counts
    confirms = frame[frame.phase == "confirm"].groupby(["variant", "confirms"]).size().to_dict()
    assert confirms == {(v, point): n for v in VARIANTS for point, n in (("best", 3), ("default", 2))}
    assert frame[frame.phase != "confirm"]["confirms"].isna().all()


def test_a_row_of_curves_is_an_epoch(written: Search) -> None:
    frame = written.curves()
    assert len(frame) == sum(len(record.history) for record in written.records.values())
    assert not frame.duplicated(["name", "epoch"]).any()
    for name, rows in frame.groupby("name"):
        record = written.records[str(name)]
        assert set(rows["variant"]) == {record.variant} and set(rows["phase"]) == {record.phase}
        for column, field in (
            ("epoch", "epoch"),
            ("validation/accuracy", "validation_accuracy"),
            ("train/loss", "train_loss"),
            ("schedule/p", "p"),
            ("speed/gradient_evaluations", "gradient_evaluations"),
        ):
            assert rows[column].tolist() == [getattr(metrics, field) for metrics in record.history]


def test_each_study_is_found_by_its_documented_name(written: Search) -> None:
    storage = f"sqlite:///{written.folder / 'optuna.db'}"
    for variant in VARIANTS:
        study = optuna.load_study(study_name=f"first/{variant}", storage=storage)
        assert study.direction == optuna.study.StudyDirection.MINIMIZE
        assert len(study.trials) == len(written.trials_of(variant)) > 12 + 2
        for trial in study.trials:
            record = written.records[f"{variant}-{trial.number:02d}"]
            stopped = record.status == "stopped"
            assert trial.state == (TrialState.PRUNED if stopped else TrialState.COMPLETE)
            assert list(trial.intermediate_values) == [m.gradient_evaluations for m in record.history]
            assert trial.params["lr.peak"] == record.spec.optimizer.lr.peak
            assert {name: value for name, value in trial.user_attrs.items() if name != "status"} == record.place
        assert study.best_trial.value == min(trial.value for trial in study.trials if trial.value is not None)


def state_of(folder: Path) -> dict[str, tuple[int, int]]:
    """File -> its size and the time of its last change; SQLite's log, which reading makes and removes, apart."""
    files = {str(path.relative_to(folder)): path.stat() for path in folder.rglob("*") if path.is_file()}
    return {
        name: (stat.st_size, stat.st_mtime_ns) for name, stat in files.items() if not name.endswith(("-wal", "-shm"))
    }


def test_reading_writes_nothing(copied: Path, written: Search) -> None:
    before = state_of(copied.parent)
    search = load_search("first", output=str(copied.parent))
    assert len(search.trials()) == len(written.records) and len(search.curves())
    assert state_of(copied.parent) == before


def test_reading_neither_waits_for_a_program_that_writes_nor_disturbs_it(copied: Path, written: Search) -> None:
    storage = open_storage(f"sqlite:///{copied / 'optuna.db'}")
    study = optuna.load_study(study_name="first/sgdm", storage=storage)
    writer = sqlite3.connect(copied / "optuna.db", timeout=0, isolation_level=None)
    writer.execute("begin exclusive")
    writer.execute("update trials set state = 'RUNNING' where trial_id = 1")
    search = load_search("first", output=str(copied.parent))
    assert search.records["sgdm-00"].ended, "what is not committed is not there"
    writer.execute("rollback")
    writer.close()
    # The reader's connections are open still.
    number = study.ask(fixed_distributions=dict(SPACES["sgdm"].searched)).number
    study._storage.set_trial_user_attr(study.trials[number]._trial_id, "index", 2)
    assert len(search.studies["sgdm"].get_trials()) == number + 1 == len(written.trials_of("sgdm")) + 1
    assert load_search("first", output=str(copied.parent)).records[f"sgdm-{number}"].status == "pending"


def test_a_storage_that_is_being_made_is_left_to_its_search(storage_url: str, tmp_path: Path) -> None:
    """Both would write the version of the tables, and the second of them would fail."""
    assert existing_storage(f"sqlite:///{tmp_path / 'none.db'}") is None and not (tmp_path / "none.db").exists()
    (tmp_path / "empty.db").touch()
    assert existing_storage(f"sqlite:///{tmp_path / 'empty.db'}") is None
    assert (tmp_path / "empty.db").stat().st_size == 0
    with contextlib.closing(sqlite3.connect(tmp_path / "optuna.db")) as database:
        database.execute("delete from alembic_version")
        database.commit()
        assert existing_storage(storage_url) is None
        assert database.execute("select count(*) from alembic_version").fetchone() == (0,)
    close_storage(open_storage(storage_url))
    assert existing_storage(storage_url) is not None


def test_a_race_is_read_as_far_as_its_rounds_have_ended(tmp_path: Path, quick_sqlite: None) -> None:
    """A program reads what another one is doing: one whose first round is not complete, and one that failed once."""
    spec = replace(SPEC, trials=16, round_size=2, output=str(tmp_path))
    folder = tmp_path / "first"
    folder.mkdir()
    search_folder.save(folder, spec, "id", {})
    chosen = [SPACES[name] for name in VARIANTS]
    storage = open_storage(f"sqlite:///{folder / 'optuna.db'}")
    studies = open_studies(spec, chosen, storage, search="first")

    def train(variant: str, slot: int, number: int = 0, *, fails: bool = False) -> None:
        study = studies[variant]
        trial = study.ask_race(number, slot)
        history = curve(spec.trial_spec(study.settings(trial), 2 * number + slot), Truth(speed=2.0))
        place = folder / f"{variant}-{trial:02d}"
        place.mkdir()
        for metrics in history:
            trial_folder.append_epoch(place, metrics)
        study.tell(trial, "failed" if fails else "finished", history)

    def counted() -> int:
        return len(load_search("first", output=str(tmp_path)).race.rounds)

    for variant, slot in (("sgdm", 0), ("sgdm", 1), ("hybrid", 0)):
        train(variant, slot)
        assert counted() == 0
    train("hybrid", 1, fails=True)
    assert counted() == 0, "it is made again"
    train("hybrid", 1, fails=True)
    assert counted() == 1
    for variant, slot in itertools.product(VARIANTS, (0, 1)):
        for _ in range(2 if variant == "hybrid" else 1):
            train(variant, slot, 1, fails=variant == "hybrid")
    race = load_search("first", output=str(tmp_path)).race
    assert len(race.rounds) == 2 and race.failed == {"hybrid"} and race.out == {"hybrid": 1}
    close_storage(storage)


def test_a_running_search_is_read_as_far_as_it_has_come(
    open_recorder: Callable[..., Recorder], storage_url: str, tmp_path: Path, epoch: Callable[..., EpochMetrics]
) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    spec = SearchSpec(name="s", variants=("lpsgdm",), trials=4, confirm_seeds=2)
    search_folder.save(folder, spec, "id", {})
    with pytest.raises(InvalidInput):
        load_search("t", output=str(tmp_path))
    assert load_search("s", output=str(tmp_path)).records == {}, "no studies yet"
    assert not (folder / "optuna.db").exists(), "reading makes none"

    study = VariantStudy(open_storage(storage_url), spec, SPACES["lpsgdm"], search="s")
    study.join(0)
    # The first trains and its second epoch is being written, the second waits.
    settings = [study.settings(number) for number in (study.ask_refine(0, 4), study.ask_refine(1, 4))]
    specs = [spec.trial_spec(optimizer, FIRST_REFINE + index) for index, optimizer in enumerate(settings)]
    trial_folder.write_spec(folder / "lpsgdm-00", specs[0])
    trial_folder.append_epoch(folder / "lpsgdm-00", epoch(1, 0.5))
    with (folder / "lpsgdm-00" / "result.json").open("a") as log:
        log.write('{"training_iteration": 2, "metr')
    search = load_search("s", output=str(tmp_path), storage=storage_url)
    assert [(r.name, r.status, r.place) for r in search.records.values()] == [
        ("lpsgdm-00", "running", {"index": 0, "point": "default"}), ("lpsgdm-01", "pending", {"index": 1}),
    ]  # fmt: skip
    assert [r.spec for r in search.records.values()] == specs
    assert search.records["lpsgdm-00"].history == [epoch(1, 0.5)]
    assert search.best("lpsgdm") is None and search.confirmed("lpsgdm") == {}
    assert search.trials()["gradient_evaluations"].tolist() == [10, 0]
    assert len(search.curves()) == 1


def test_a_search_without_studies_has_its_confirmed_runs(copied: Path, written: Search) -> None:
    (copied / "optuna.db").unlink()
    search = load_search("first", output=str(copied.parent))
    assert search.studies == {} and search.best("sgdm") is None
    assert search.records == {name: r for name, r in written.records.items() if r.phase == "confirm"}
    assert search.confirmed("sgdm") == {}, "which settings were the best is not known"
    assert search.confirmed("sgdm", "default") == written.confirmed("sgdm", "default")


def test_a_confirmed_run_is_read_as_it_stands(copied: Path, written: Search) -> None:
    places = {k: copied / record.folder_name for k, record in written.confirmed("hybrid").items()}
    (places[0] / "test.json").unlink()
    (places[1] / "failure.txt").write_text("out of memory\n")
    lines = (places[2] / "result.json").read_text().splitlines(keepends=True)
    (places[2] / "result.json").write_text("".join(lines[:2]) + lines[2][:40])
    cut = copied / "hybrid.confirm-9"
    cut.mkdir()
    (cut / "spec.json").write_text((places[0] / "spec.json").read_text()[:50])
    (copied / "hybrid.confirm-1 (copy)").mkdir()
    shutil.copy(places[0] / "spec.json", copied / "hybrid.confirm-1 (copy)")

    search = load_search("first", output=str(copied.parent))
    assert set(search.records) == set(written.records), "neither the cut spec nor the copy is a run"
    runs = search.confirmed("hybrid")
    assert [run.status for run in runs.values()] == ["finished", "failed", "running"]
    assert [run.test is None for run in runs.values()] == [True, False, False]
    assert len(runs[2].history) == 2
    untested = search.trials().set_index("name")["test/accuracy"].isna()
    assert [untested[run.name] for run in runs.values()] == [True, False, False]


def test_a_run_of_settings_that_are_the_best_no_more_confirms_nothing(copied: Path, written: Search) -> None:
    first = next(iter(written.confirmed("sgdm").values()))
    other = with_settings(OptimizerSpec(), SPACES["sgdm"].default_settings() | {"lr.peak": 0.123})
    trial_folder.write_spec(copied / "sgdm.confirm-1", SPEC.confirm_spec(other, 0))
    search = load_search("first", output=str(copied.parent))
    assert first.name == "sgdm/confirm-1" and list(search.confirmed("sgdm")) == [1, 2]
    assert search.points_of(search.records["sgdm/confirm-1"]) == []
    assert search.trials().set_index("name").loc["sgdm/confirm-1"]["confirms"] == ""


def test_what_is_no_search_is_refused_by_name(copied: Path) -> None:
    shutil.copytree(copied, copied.parent / "second")
    output = str(copied.parent)
    for name, said in {
        "frist": "unknown search in .* 'frist': did you mean 'first'",
        "zzz": "unknown search in .* 'zzz': choose from first, second",
        "first/sgdm-00": "unknown search",
    }.items():
        with pytest.raises(InvalidInput, match=said):
            load_search(name, output=output)
    with pytest.raises(InvalidInput, match=r"search first: there is no search in .*nowhere"):
        load_search("first", output=str(copied.parent / "nowhere"))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"spec": {}}', '{"id": "x", "spec": {"trials": "many"}}', '{"id": "x", "spec": {"x": 1}}']
)
def test_a_spec_that_cannot_be_read_is_refused(copied: Path, text: str) -> None:
    (copied / "search.json").write_text(text)
    with pytest.raises(InvalidInput, match=r"search first: its search\.json cannot be read"):
        load_search("first", output=str(copied.parent))


def test_a_variant_that_is_gone_is_named(copied: Path) -> None:
    saved = json.loads((copied / "search.json").read_text())
    saved["spec"]["variants"][1] = "hybird"
    (copied / "search.json").write_text(json.dumps(saved))
    with pytest.raises(InvalidInput, match="'hybird': did you mean 'hybrid'"):
        load_search("first", output=str(copied.parent))


def test_the_best_has_a_log_finished_and_is_the_earliest_of_equals(epoch: Callable[..., EpochMetrics]) -> None:
    search = Search(SPEC, "id", (SPACES["sgdm"],), Path("first"), {})
    assert search.best("sgdm") is None
    endings: list[tuple[str, list[float]]] = [
        ("finished", []), ("stopped", [0.99]), ("diverged", [0.99]), ("finished", [0.6]), ("finished", [0.8]),
        ("finished", [0.8]), ("failed", [0.99]),
    ]  # fmt: skip
    for number, (status, accuracies) in enumerate(endings):
        history = [epoch(n, accuracy, diverged=status == "diverged") for n, accuracy in enumerate(accuracies, start=1)]
        name = f"sgdm-{number:02d}"
        spec, place = SPEC.trial_spec(OptimizerSpec(), number), {"round": number, "slot": 0}
        search.records[name] = TrialRecord(name, "sgdm", number, spec, status=status, history=history, place=place)
    best = search.best("sgdm")
    assert best is not None and best.number == 4
