"""What a search has come to, read from disk: the same as in memory, whatever state it is in, and nothing is written."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from pandas.testing import assert_frame_equal

from benchmarks.simulated_search import Truth, simulate
from search_spaces import SPACES
from tuner import load_search
from tuner.core.errors import InvalidInput
from tuner.core.metrics import EpochMetrics
from tuner.core.search_spec import Objective, SearchSpec
from tuner.core.serialization import with_settings
from tuner.core.trial_spec import OptimizerSpec
from tuner.study import search_folder, trial_folder
from tuner.study.optuna_study import VariantStudy, close_storage, existing_storage, open_storage
from tuner.study.recorder import Recorder
from tuner.study.results import Search, TrialRecord

VARIANTS = ("sgdm", "hybrid")
SPEC = SearchSpec.from_flags(name="first", variants=VARIANTS, trials=12, confirm_seeds=3, epochs=4, targets=(0.5, 0.8))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, quick_sqlite: None) -> Search:
    """A finished search, in memory and in its folder; it has trials of every ending but failed ones."""
    truths = {"sgdm": Truth(lr_limit=0.3), "hybrid": Truth(speed=0.4)}
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
    for ours, theirs in ((read.trials(), written.trials()), (read.curves(), written.curves())):
        # Confirmed runs come by the names of their variants, as which were made first is not kept.
        ours, theirs = (frame.sort_values("name", kind="stable", ignore_index=True) for frame in (ours, theirs))
        assert_frame_equal(ours, theirs, check_like=True)


@pytest.mark.parametrize("objective", ["time-to-target", "accuracy"])
def test_best_is_the_finished_trial_with_the_best_objective_the_earliest_of_equals(objective: Objective) -> None:
    training = replace(SPEC.training, epochs=8)
    spec = replace(SPEC, objective=objective, early_stopping=False, training=training)
    search = simulate(spec, {"sgdm": Truth(lr_limit=0.3, noise=0.4), "hybrid": Truth(speed=0.4, noise=0.4)})
    for variant in VARIANTS:
        values: dict[str, float] = {}
        for record in search.trials_of(variant):
            spent = [m.gradient_evaluations for m in record.history if m.validation_accuracy >= 0.8]
            value = -record.history[-1].validation_accuracy if objective == "accuracy" else min(spent, default=math.inf)
            if record.status == "finished":
                values[record.name] = value
        assert len(set(values.values())) > 1, "nothing to choose from"
        best = search.best(variant)
        assert best and best.name == min(values, key=lambda name: values[name])


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
        reached = [m.gradient_evaluations for m in history if m.validation_accuracy >= 0.8 and not m.diverged]
        shown = row["speed/gradient_evaluations_to_80"]
        assert shown == reached[0] if reached else math.isnan(shown)
        assert row["speed/best_accuracy"] == max([0.0, *(m.validation_accuracy for m in history if not m.diverged)])
        assert row["test/accuracy"] == record.test.accuracy if record.test else math.isnan(row["test/accuracy"])
    counts = frame.groupby("phase").size().to_dict()
    assert counts == {"explore": 2 * 12, "confirm": 2 * (3 + 2)}, "three seeds of the best, two of the default point"
    confirms = frame[frame.phase == "confirm"].groupby(["variant", "confirms"]).size().to_dict()
    assert confirms == {(v, point): n for v in VARIANTS for point, n in (("best", 3), ("default", 2))}
    assert frame[frame.phase == "explore"]["confirms"].isna().all()
    assert frame.groupby("arm").size().to_dict() == {"random": 12, "model": 12}


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
        assert len(study.trials) == 12
        for trial in study.trials:
            record = written.records[f"{variant}-{trial.number:02d}"]
            stopped = record.status == "stopped"
            assert trial.state == (TrialState.PRUNED if stopped else TrialState.COMPLETE)
            assert list(trial.intermediate_values) == [m.gradient_evaluations for m in record.history]
            assert (trial.params["lr.peak"], trial.user_attrs["arm"]) == (record.spec.optimizer.lr.peak, record.arm)
        assert study.best_trial.value == min(trial.value for trial in study.trials if trial.value is not None)


def state_of(folder: Path) -> dict[str, tuple[int, int]]:
    """File -> its size and the time of its last change; SQLite's log, which reading makes and removes, apart."""
    files = {str(path.relative_to(folder)): path.stat() for path in folder.rglob("*") if path.is_file()}
    return {
        name: (stat.st_size, stat.st_mtime_ns) for name, stat in files.items() if not name.endswith(("-wal", "-shm"))
    }


def test_reading_writes_nothing(copied: Path) -> None:
    before = state_of(copied.parent)
    search = load_search("first", output=str(copied.parent))
    assert len(search.trials()) == 34 and len(search.curves())
    assert state_of(copied.parent) == before


def test_reading_neither_waits_for_a_program_that_writes_nor_disturbs_it(copied: Path) -> None:
    written = open_storage(f"sqlite:///{copied / 'optuna.db'}")
    study = optuna.load_study(study_name="first/sgdm", storage=written)
    writer = sqlite3.connect(copied / "optuna.db", timeout=0, isolation_level=None)
    writer.execute("begin exclusive")
    writer.execute("update trials set state = 'RUNNING' where trial_id = 1")
    search = load_search("first", output=str(copied.parent))
    assert search.records["sgdm-00"].ended, "what is not committed is not there"
    writer.execute("rollback")
    writer.close()
    # The reader's connections are open still.
    study.ask()
    assert len(search.studies["sgdm"].get_trials()) == 13
    assert load_search("first", output=str(copied.parent)).records["sgdm-12"].status == "pending"


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

    study = VariantStudy(
        storage=open_storage(storage_url), search="s", variant=SPACES["lpsgdm"], objective="time-to-target",
        targets=spec.training.targets, num_trials=4, seed=0,
    )  # fmt: skip
    # The first trains and its second epoch is being written, the second waits.
    settings = [study.settings(study.ask()) for _ in range(2)]
    trial_folder.write_spec(folder / "lpsgdm-00", spec.trial_spec(settings[0], 0))
    trial_folder.append_epoch(folder / "lpsgdm-00", epoch(1, 0.5))
    with (folder / "lpsgdm-00" / "result.json").open("a") as log:
        log.write('{"training_iteration": 2, "metr')
    search = load_search("s", output=str(tmp_path), storage=storage_url)
    assert [(r.name, r.status, r.arm) for r in search.records.values()] == [
        ("lpsgdm-00", "running", "random"), ("lpsgdm-01", "pending", "random"),
    ]  # fmt: skip
    assert [r.spec for r in search.records.values()] == [spec.trial_spec(settings[n], n) for n in range(2)]
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
        spec = SPEC.trial_spec(OptimizerSpec(), number)
        search.records[name] = TrialRecord(name, "sgdm", number, spec, status=status, history=history)
    best = search.best("sgdm")
    assert best is not None and best.number == 4
