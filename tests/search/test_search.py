"""The command as a whole: what a newcomer sees, and what bad input gets."""

from __future__ import annotations

import csv
import itertools
import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.command import FORMULA, NUM_ALONE, check_whole, mlflow_runs, search, studies
from tests.tracked import load_function
from tuner.search.__main__ import main
from tuner.study.results import load_search

OF_PHASE = {
    "race": {"round", "slot"},
    "confirm": {"confirms"},
}
"""Phase -> the tags of its runs that say what a run is for."""
EPOCH_METRICS = {
    "train/loss",
    "train/accuracy",
    "validation/loss",
    "validation/accuracy",
    "schedule/lr",
    "schedule/momentum",
    "schedule/p",
    "speed/gradient_evaluations",
    "speed/seconds",
    "speed/images_per_second",
}


@pytest.mark.slow
def test_every_trial_once_everywhere(finished: tuple[Path, object]) -> None:
    check_whole(finished[0], {"sgdm": 2, "adamw": 2, "lpsgdm": 2, "critical": 2})


def test_the_terminal_shows_trials_table_winner_and_where_to_look(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, ran = finished
    assert len(re.findall(r"^\d+/20 [a-z]+-0[01] (?:finished|stopped|diverged)", ran.stdout, re.M)) == 8
    assert len(re.findall(r"^\d+/20 [a-z]+/confirm-[123] (?:finished|diverged)", ran.stdout, re.M)) == 12
    for variant in ("sgdm", "adamw", "lpsgdm", "critical"):
        assert re.search(rf"│ {variant} +│", ran.stdout), variant
    assert re.search(r"^sgdm, adamw, lpsgdm and critical are not told apart after 2 rounds", ran.stdout, re.M)
    assert "to 60%" in ran.stdout
    assert f"Report: {folder}/runs/a/report.html" in ran.stdout
    assert re.search(r"lr\.peak = [\d.e-]+", ran.stdout)
    assert f"Files: {folder}/runs/a" in ran.stdout
    assert "MLflow: mlflow ui" in ran.stdout
    assert ran.stderr == ""
    assert "ray" not in ran.stdout.lower().replace("array", ""), "its chatter is in the log"


@pytest.mark.slow
def test_a_search_by_seconds_times_its_variants_alone_before_anything_else(tmp_path: Path) -> None:
    """A search of its own: no other one measures seconds, and it is Tune that keeps two trainings apart."""
    flags = ("--name", "a", "--variants", "sgdm", "adamw", "--trials", "2", "--round-size", "1", "--cost", "seconds")
    ran = search(tmp_path, *flags, "--refine-trials", "0", "--confirm-seeds", "1", program=FORMULA)
    assert ran.returncode == 0, ran.stderr
    (measured,) = re.findall(r"^Seconds per gradient evaluation: sgdm ([\d.]+), adamw ([\d.]+)\.$", ran.stdout, re.M)
    seen = load_search("a", output=str(tmp_path / "runs"))
    assert [f"{seconds:.3g}" for seconds in seen.seconds.values()] == list(measured)
    ends = sorted((r.history[0].finished_at, r.history[-1].finished_at) for r in seen.timings())
    assert len(ends) == 6 and all(before[1] < after[0] for before, after in itertools.pairwise(ends))
    assert min(record.history[0].finished_at for record in seen.trainings()) > ends[-1][1]
    assert re.search("Fast is by seconds of training", ran.stdout)
    _, runs = mlflow_runs(tmp_path)
    assert sum(run.data.tags.get("phase") == "timing" for run in runs) == 6
    assert next(run for run in runs if "mlflow.parentRunId" not in run.data.tags).data.params["cost"] == "seconds"


def test_mlflow_holds_parameters_metrics_tags_and_pictures(finished: tuple[Path, object]) -> None:
    client, runs = mlflow_runs(finished[0])
    parent = next(run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    assert parent.info.run_name == "a"
    files = {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert files == {"report.html", "report.md", "report", "time_to_target.csv"}
    pictures = {item.path for item in client.list_artifacts(parent.info.run_id, "report")}
    assert {"report/convergence.png", "report/convergence.svg", "report/leaderboard.csv"} <= pictures
    assert "not told apart after 2 rounds" in parent.data.tags["mlflow.note.content"]
    assert parent.data.params["objective"] == "time-to-target"
    for run in runs:
        if run is parent:
            continue
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.inputs is not None and run.inputs.dataset_inputs[0].dataset.name == "digits"
        if run.data.tags["phase"] == "variant":
            continue
        assert run.data.tags["variant"] == re.split(r"-\d|/", run.info.run_name)[0]
        assert OF_PHASE[run.data.tags["phase"]] <= set(run.data.tags)
        assert run.data.tags["workload"] == "digits"
        assert run.data.tags["status"] in ("finished", "stopped", "diverged")
        assert {"version.torch", "version.ray", "mlflow.source.git.commit"} <= set(run.data.tags) | {
            "mlflow.source.git.commit"
        }
        assert set(run.data.metrics) >= EPOCH_METRICS | {"speed/auc", "stability/tail_std", "stability/max_loss_jump"}
        assert "optimizer.norm.p_max" in run.data.params


def test_final_metrics_follow_from_the_curves(finished: tuple[Path, object]) -> None:
    client, runs = mlflow_runs(finished[0])
    num_reached = 0
    for run in runs:
        if run.data.tags.get("phase") not in OF_PHASE:
            continue
        curve = client.get_metric_history(run.info.run_id, "validation/accuracy")
        spent = {m.step: m.value for m in client.get_metric_history(run.info.run_id, "speed/gradient_evaluations")}
        for label, target in (("20", 0.2), ("60", 0.6)):
            accuracies = {0: 0.1, **{m.step: m.value for m in sorted(curve, key=lambda m: m.step)}}
            first = next((step for step, value in accuracies.items() if value >= target), None)
            reached = run.data.metrics.get(f"speed/gradient_evaluations_to_{label}")
            if first is None:
                assert reached is None
                continue
            # On a straight line from the evaluation before, where guessing is the first.
            share = (target - accuracies[first - 1]) / (accuracies[first] - accuracies[first - 1])
            assert run.data.metrics[f"speed/epochs_to_{label}"] == first
            before = spent.get(first - 1, 0)
            assert reached == pytest.approx(before + share * (spent[first] - before))
            num_reached += 1
    assert num_reached


def test_a_training_of_the_race_ends_at_the_target(finished: tuple[Path, object]) -> None:
    """A confirmed run does not: its whole curve is compared."""
    search = load_search("a", output=str(finished[0] / "runs"))
    ends = {"race": set[bool](), "confirm": set[bool]()}
    for record in search.records.values():
        reached = [metrics.epoch for metrics in record.history if metrics.validation_accuracy >= 0.6]
        if reached and record.phase == "race":
            assert record.history[-1].epoch == reached[0]
        ends[record.phase].add(record.history[-1].epoch == 3 or record.status == "diverged")
    assert ends["confirm"] == {True} and False in ends["race"]


def test_the_rounds_are_told_and_are_those_of_the_search(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    rounds = load_search("a", output=str(finished[0] / "runs")).rounds()
    for number in (1, 2):
        (line,) = [
            line for line in finished[1].stdout.splitlines() if line.startswith(f"Round {number} of at most 2: ")
        ]
        times = rounds[rounds["round"] == number - 1].set_index("variant").time
        assert f"{times.idxmin()} first, in {times.min():.0f} gradient evaluations" in line
    assert len(rounds) == 8, "two rounds put none of four variants out"


def test_optuna_holds_the_running_objective_in_its_direction(finished: tuple[Path, object]) -> None:
    for variant, study in studies(finished[0]).items():
        assert study.direction.name == "MINIMIZE"
        for trial in study.trials:
            values = [trial.intermediate_values[step] for step in sorted(trial.intermediate_values)]
            assert values == sorted(values, reverse=True), (variant, trial.number)
            if trial.state.name == "COMPLETE":
                assert trial.value == values[-1]


def test_the_run_table_of_mlflow_sorted_is_the_leaderboard(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    client, runs = mlflow_runs(finished[0])
    lines = client.search_runs(
        [runs[0].info.experiment_id], "tags.phase = 'variant'", order_by=["metrics.`leaderboard/rank` ASC"]
    )
    printed = list(csv.reader((finished[0] / "runs/a/report/leaderboard.csv").read_text().splitlines()))
    assert [run.info.run_name for run in lines] == [line[0] for line in printed[1:]]
    frame = load_search("a", output=str(finished[0] / "runs")).trials()
    for run in lines:
        tuned = frame[(frame.variant == run.info.run_name) & (frame.confirms == "best")]
        assert len(tuned) == 2
        assert run.data.metrics["test/accuracy"] == pytest.approx(tuned["test/accuracy"].mean())
        missed = tuned["speed/gradient_evaluations_to_60"].isna().any()
        median = tuned["speed/gradient_evaluations_to_60"].median(skipna=False)
        assert missed or run.data.metrics["leaderboard/gradient_evaluations"] == median
        settings = {"undecided", "settings faster", "settings slower"}
        assert run.data.tags["verdict"] in ({"baseline"} if run.info.run_name == "sgdm" else settings), "of two rounds"


def test_the_winning_model_can_be_loaded_from_mlflow(finished: tuple[Path, object]) -> None:
    _, runs = mlflow_runs(finished[0])
    parent = next(run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    function = load_function(f"sqlite:///{finished[0]}/mlflow.db", parent.data.tags["winning_model"])
    shares = function.predict(np.zeros((3, 1, 8, 8), dtype=np.uint8))
    assert shares.sum(1) == pytest.approx([1, 1, 1], abs=1e-3)


@pytest.mark.slow
def test_python_interface_is_the_same_dataclass(tmp_path: Path) -> None:
    program = (
        "from tests import formula\nformula.install()\n"
        "from tests.command import NUM_ALONE as N\n"
        "from tuner import SearchSpec, TrialSpec, load_search, run_search\n"
        "spec = SearchSpec(name='a', variants=('sgdm',), trials=1, round_size=1, training=TrialSpec(epochs=1),\n"
        "                  confirm_seeds=1)\n"
        "result = run_search(spec)\n"
        "assert [r.phase for r in load_search('a').records.values()] == [*['refine'] * N, 'confirm']\n"
        "assert result.exit_status == 0 and result.best_trial == 'sgdm-00'\n"
    )
    ran = search(tmp_path, program=["-c", program])
    assert ran.returncode == 0, ran.stdout + ran.stderr
    check_whole(tmp_path, {"sgdm": NUM_ALONE})
    _, runs = mlflow_runs(tmp_path)
    tags = {run.info.run_name: run.data.tags for run in runs}
    assert (tags["sgdm-00"]["index"], tags["sgdm-00"]["point"]) == ("0", "default")
    for k in range(1, NUM_ALONE):
        assert (tags[f"sgdm-0{k}"]["repeats"], tags[f"sgdm-0{k}"]["repeat"]) == ("0", str(k))
    assert tags["sgdm/confirm-1"]["confirms"] == "best default", "one training of equal settings"


@pytest.mark.slow
def test_all_diverged_is_a_result_and_exit_status_1(tmp_path: Path) -> None:
    ran = search(
        tmp_path, "--name", "a", "--variants", "sgdm", "--trials", "2", "--round-size", "2", "--epochs", "1",
        "--confirm-seeds", "1", "--space", "lr.peak=1e8:1e9:log", "decay.weight=.5:1",
    )  # fmt: skip
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert "No trial finished" in ran.stdout
    _, runs = mlflow_runs(tmp_path)
    assert {run.data.tags["status"] for run in runs if run.data.tags.get("phase") == "refine"} == {"diverged"}
    assert {run.info.status for run in runs} == {"FINISHED"}
    for trial in studies(tmp_path)["sgdm"].trials:
        assert trial.state.name == "COMPLETE" and trial.value == 2 * 16
    check_whole(tmp_path, {"sgdm": 2})


@pytest.mark.slow
@pytest.mark.extensive
def test_a_failing_trial_is_failed_everywhere_and_the_rest_goes_on(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "from search_spaces import SPACES, Variant\n"
        "from optuna.distributions import FloatDistribution\n"
        "VARIANT = Variant(name='mine', idea='x', source='ours', fixed={'rule': 'sgd'},\n"
        "    searched={'lr.peak': FloatDistribution(.01, .1)}, default={'lr.peak': .05})\n"
        "class Picky(torch.nn.Sequential):\n"
        "    def forward(self, x): return super().forward(x) if float(x.sum()) < 1e9 else x\n"
        "def model(*, num_classes, channels, image_size):\n"
        "    if torch.initial_seed() == 400_001: raise RuntimeError('this seed is not liked')\n"
        "    return Picky(torch.nn.Flatten(), torch.nn.Linear(channels * image_size ** 2, num_classes))\n"
    )
    ran = search(
        tmp_path, "--name", "a", "--variants", "mine:VARIANT", "--model", "mine:model",
        "--trials", "2", "--round-size", "2", "--epochs", "1", "--max-failures", "1", "--confirm-seeds", "1",
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "The winning model could not be saved for MLflow" in ran.stdout, "torch.export follows no such branch"
    _, runs = mlflow_runs(tmp_path)
    by_name = {run.info.run_name: run for run in runs}
    assert (by_name["mine-00"].info.status, by_name["mine-00"].data.tags["status"]) == ("FINISHED", "finished")
    assert (by_name["mine-01"].info.status, by_name["mine-01"].data.tags["status"]) == ("FAILED", "failed")
    assert "this seed is not liked" in by_name["mine-01"].data.tags["failure"]
    states = [trial.state.name for trial in studies(tmp_path)["mine"].trials]
    assert states == ["COMPLETE", "FAIL", *["COMPLETE"] * (NUM_ALONE - 1)]
    assert search(tmp_path, "--resume", "a").returncode == 0, "a failed trial is one of those planned"
    assert len(studies(tmp_path)["mine"].trials) == len(states)


@pytest.mark.slow
@pytest.mark.extensive
@pytest.mark.parametrize("objective", ["accuracy", "auc", "pareto"])
def test_other_objectives(objective: str, tmp_path: Path) -> None:
    ran = search(
        tmp_path, "--name", "a", "--variants", "sgdm", "--trials", "2", "--round-size", "2", "--epochs", "1",
        "--confirm-seeds", "1", "--objective", objective, program=FORMULA,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    study = studies(tmp_path)["sgdm"]
    assert [d.name for d in study.directions] == {
        "accuracy": ["MAXIMIZE"],
        "auc": ["MINIMIZE"],
        "pareto": ["MINIMIZE", "MAXIMIZE"],
    }[objective]
    for trial in study.trials:
        accuracy = json.loads((tmp_path / f"runs/a/sgdm-{trial.number:02d}/result.json").read_text())[
            "validation/accuracy"
        ]
        assert trial.values[-1] == pytest.approx(1 - accuracy if objective == "auc" else accuracy)


def images(folder: Path) -> None:
    """Folders that are no workload, and a file that is no folder."""
    from PIL import Image

    (folder / "empty").mkdir()
    (folder / "file").write_text("")
    for label in ("a", "b"):
        (folder / "corrupt/train" / label).mkdir(parents=True)
        for number in range(10):
            Image.new("L", (8, 8), number).save(folder / "corrupt/train" / label / f"{number}.png")
    (folder / "corrupt/train/b/broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnot an image")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--variants", "sgdmm"], "--variants: unknown variant 'sgdmm': did you mean 'sgdm'?"),
        (["--workload", "digit"], "did you mean 'digits'?"),
        pytest.param(*(["--model", "resnet9"], "resnet"), marks=pytest.mark.extensive),
        (["--workload", "diagonal", "--model", "resnet8"], "--model resnet8: takes images, and diagonal has none"),
        (["--model", "diagonal"], "--model diagonal: takes the workload diagonal alone"),
        (["--model", "nowhere.module:function"], "nowhere"),
        pytest.param(*(["--model", "alexnet"], "alexnet"), marks=pytest.mark.extensive),
        (["--output", "s3://bucket/runs"], "--output s3://bucket/runs"),
        (["--space", "lr.paek=1:2"], "did you mean 'lr.peak'?"),
        (["--epoch", "3"], "did you mean --epochs?"),
        (["--epochs", "three"], "--epochs"),
        (["--epochs", "0"], "--epochs 0: must be at least 1"),
        (["--trials", "0"], "--trials 0: must be at least 1"),
        (["--trials", "3"], "--round-size 4: must be at least 1 and at most --trials 3"),
        (["--alpha", "1"], "--alpha 1"),
        (["--batch-size", "5000"], "--batch-size 5000"),
        (["--targets", "0.9", "1.5"], "--targets 1.5: must be in (0, 1)"),
        (["--targets", "0.9", "0.5"], "--targets"),
        (["--objective", "speed"], "time-to-target"),
        (["--workload", "cifar10"], "--data-dir"),
        (["--workload", "imagefolder", "--data-dir", "nowhere"], "nowhere"),
        (["--workload", "imagefolder", "--data-dir", "empty"], "empty"),
        (["--workload", "imagefolder", "--data-dir", "corrupt", "--batch-size", "2"], "corrupt/train/b/broken.png"),
        (["--name", "a/b"], "plain folder name"),
        (["--name", ".."], "plain folder name"),
        (["--resume", "never"], "--resume never"),
        (["--cpus-per-trial", "1000"], "--cpus-per-trial 1000: this machine has"),
        (["--tracking-uri", "http://someone:secret@127.0.0.1:1"], "--tracking-uri http://someone:***@127.0.0.1:1"),
        (["--tracking-uri", "ftp://x"], "--tracking-uri ftp://x"),
        (["--tracking-uri", "sqlite:///nowhere/mlflow.db"], "--tracking-uri"),
        (["--storage", "postgresql://someone:secret@127.0.0.1:1/optuna"], "--storage postgresql://someone:***@127.0.0.1"),
        (["--storage", "sqlite:///nowhere/optuna.db"], "--storage"),
        (["--time-budget", "soon"], "--time-budget 'soon'"),
        (["--confirm-seeds", "-1"], "--confirm-seeds -1"),
        (["--baseline", "adam", "--variants", "sgdm", "adamw"], "did you mean 'adamw'?"),
        (["--output", "file"], "--output file"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_line_and_leaves_nothing(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    images(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and message in said.err
    assert said.err.count("\n") == 1 and said.out == ""
    assert "secret" not in said.err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        # Found before anything is started, when Ray has been asked for, and when it has started.
        (["--variants", "sgdmm"], "--variants: unknown variant 'sgdmm': did you mean 'sgdm'?"),
        (["--address", "127.0.0.1:1"], "--address 127.0.0.1:1"),
        (["--gpus-per-trial", "1000"], "--gpus-per-trial 1000: this machine has"),
    ],
)
def test_a_program_that_is_given_bad_input_ends_with_status_2(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    ran = search(tmp_path, *arguments)
    assert ran.returncode == 2, ran.stdout + ran.stderr
    assert ran.stderr.startswith("error: ") and message in ran.stderr
    assert ran.stderr.count("\n") == 1 and "Traceback" not in ran.stderr and ran.stdout == ""
    assert not list(tmp_path.iterdir())
