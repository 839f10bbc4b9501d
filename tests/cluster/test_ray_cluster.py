"""How many trials fit on machines, and that machines which join or leave are counted."""

from __future__ import annotations

import pytest

from tuner.cluster import ray_cluster
from tuner.cluster.ray_cluster import RECOUNT_SECONDS, Resources, Slots, _share
from tuner.core.errors import InvalidInput
from tuner.core.search_spec import SearchSpec

Machine = dict[str, float]
G6: Machine = {"CPU": 4, "GPU": 1}


def fitting(machines: list[Machine], monkeypatch: pytest.MonkeyPatch, **asked: float) -> Resources:
    monkeypatch.setattr(ray_cluster, "_machines", lambda: machines)
    return _share(SearchSpec.from_flags(address="auto", **asked))


@pytest.mark.parametrize(
    ("machine", "asked", "slots"),
    [
        ({"CPU": 2}, {"cpus_per_trial": 1}, 2),
        ({"CPU": 2}, {"cpus_per_trial": 0.1}, 20),
        ({"CPU": 2}, {"cpus_per_trial": 0.75}, 2),
        (G6, {}, 1),
        (G6, {"gpus_per_trial": 0.25}, 4),
        (G6, {"gpus_per_trial": 0.2, "cpus_per_trial": 0.5}, 5),
        (G6, {"gpus_per_trial": 0.3}, 3),
        ({"CPU": 64, "GPU": 4}, {"gpus_per_trial": 0.3}, 12),
        ({"CPU": 64, "GPU": 4}, {"gpus_per_trial": 0.1, "cpus_per_trial": 0.5}, 40),
        ({"CPU": 64, "GPU": 5}, {"gpus_per_trial": 2}, 2),
        (G6, {"gpus_per_trial": 0.25, "cpus_per_trial": 2}, 2),
        (G6, {"gpus_per_trial": 0}, 4),
    ],
)
def test_a_part_of_a_gpu_is_of_one_gpu_and_no_rounding_takes_a_slot(
    machine: Machine, asked: dict[str, float], slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fitting([machine], monkeypatch, **asked).slots == slots
    assert fitting([machine] * 3, monkeypatch, **asked).slots == 3 * slots


def test_trials_of_several_workers_take_several_places(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fitting([G6] * 5, monkeypatch, workers_per_trial=2).slots == 2
    with pytest.raises(InvalidInput, match="--workers-per-trial 4: the cluster has room for 2"):
        fitting([G6] * 2, monkeypatch, workers_per_trial=4)


def test_machines_that_join_and_leave_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    machines, now = [G6], 0.0
    monkeypatch.setattr(ray_cluster, "_machines", lambda: machines)
    monkeypatch.setattr("tuner.cluster.ray_cluster.time.monotonic", lambda: now)
    spec = SearchSpec(address="auto", gpus_per_trial=0.5)
    slots = Slots(spec, _share(spec))
    assert slots.now() == 2
    machines += [G6, G6]
    assert slots.now() == 2, "not at every question"
    now += RECOUNT_SECONDS + 0.1
    assert slots.now() == 6
    machines.clear()
    now += RECOUNT_SECONDS + 0.1
    assert slots.now() == 0, "trials wait for machines"
    local = SearchSpec()
    assert Slots(local, Resources(1, 0, 2)).now() == 2
