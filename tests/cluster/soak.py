"""Random faults during searches on the cluster of test hosts.

python -m tests.cluster.soak                           30 faults over searches of 48 trials, 200 trials at least
python -m tests.cluster.soak --fault disk-full         these faults, during searches of 24 trials
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.cluster.cluster import Cluster
from tests.cluster.faults import FAULTS, inject, small_disk
from tests.cluster.hosts import lacking
from tests.cluster.searching import VARIANTS, ClusterSearch


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fault", nargs="+", choices=sorted(FAULTS), help="these faults, in this order")
    parser.add_argument("--faults", type=int, default=30, help="random faults")
    parser.add_argument("--trials", type=int, default=200, help="least number of trials over all searches")
    parser.add_argument("--trials-per-variant", type=int, default=16, help="of each search")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    if reason := lacking():
        print(f"error: {reason}", file=sys.stderr)
        return 2
    print(f"seed {options.seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    try:
        with Cluster(folder / "hosts") as cluster:
            small_disk(cluster.hosts.head)
            cluster.ray_up()
            if options.fault:
                _soak(cluster, random.Random(options.seed), options.fault, 24, 8)
            else:
                draw = random.Random(options.seed)
                names = [draw.choice(sorted(FAULTS)) for _ in range(options.faults)]
                _soak(cluster, draw, names, options.trials, options.trials_per_variant)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def _soak(cluster: Cluster, draw: random.Random, names: list[str], num_trials: int, per_variant: int) -> None:
    started = time.monotonic()
    made, waiting, num_searches = 0, list(names), 0
    while waiting or made < num_trials:
        num_searches += 1
        search = ClusterSearch(cluster, f"soak{num_searches}", trials=per_variant)
        search.start()
        while search.status is None or search.status != 0:
            search.wait_for_epochs(draw.randint(10, 70))
            if search.status == 0:
                break
            if not waiting:
                assert search.wait() == 0, search.output
                break
            name = waiting.pop(0)
            print(f"{time.monotonic() - started:5.0f} s  {search.name}  {name}", flush=True)
            inject(search, name, draw)
        made += per_variant * len(VARIANTS)
        search.check_whole()
        compared = search.check_interrupted()
        print(
            f"{time.monotonic() - started:5.0f} s  {search.name} is whole: {search.num_epochs} epochs, {compared} "
            "interrupted trainings equal to uninterrupted ones",
            flush=True,
        )
    print(f"{len(names)} faults, {made} trials: none lost, none doubled", flush=True)


if __name__ == "__main__":
    sys.exit(main())
