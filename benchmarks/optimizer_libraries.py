"""Which optimizers of the libraries train and resume here, as they are, from an import path and a learning rate.

Every class of torch.optim, timm.optim, pytorch_optimizer, schedulefree and heavyball that can be constructed with a
learning rate alone trains ResNet-8 on digits for 20 steps.  It is cut after ten and resumed, and must end with the same
bits; otherwise the table has the sentence that refuses it.

    python -m benchmarks.optimizer_libraries --out build/benchmarks/optimizer_libraries.json
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.optim.optimizer import Optimizer

from search_spaces.own import optimizer_variant
from tuner.core.errors import InvalidInput
from tuner.core.import_path import describe_here
from tuner.core.serialization import with_settings
from tuner.core.trial_spec import OptimizerSpec, TrialSpec
from tuner.train.tryout import try_out

LIBRARIES = ("torch.optim", "timm.optim", "pytorch_optimizer", "schedulefree", "heavyball")
NUM_STEPS = 20


def optimizers(library: str) -> Iterator[str]:
    """The names of a library's optimizers, except those that it takes from torch under the same name."""
    module = importlib.import_module(library)
    seen: set[type] = set()
    for name, found in sorted(vars(module).items()):
        if not inspect.isclass(found) or not issubclass(found, Optimizer) or found is Optimizer or name[0] == "_":
            continue
        if library != "torch.optim" and found.__module__.startswith("torch."):
            continue
        if found not in seen:
            seen.add(found)
            yield name


def tried(path: str) -> str | None:
    """None if the optimizer trains and resumes, else the sentence that refuses it."""
    found = describe_here(path)
    lr = (found["defaults"] or {}).get("lr")
    try:
        variant = optimizer_variant(path, path.partition(":")[2], lr=lr if isinstance(lr, int | float) else None)
        spec = TrialSpec(optimizer=with_settings(OptimizerSpec(), variant.default_settings()))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try_out(spec, num_steps=NUM_STEPS)
    except InvalidInput as error:
        return str(error)
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--libraries", nargs="+", default=LIBRARIES, choices=LIBRARIES)
    parser.add_argument("--only", nargs="+", metavar="CLASS", help="only classes of these names")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    try:
        import heavyball

        # It compiles its functions otherwise, which takes minutes for each class.
        heavyball.utils.compile_mode = None
    except ImportError:
        pass
    rows: list[dict[str, object]] = []
    for library in arguments.libraries:
        for name in optimizers(library):
            if arguments.only and name not in arguments.only:
                continue
            started = time.perf_counter()
            refusal = tried(f"{library}:{name}")
            rows.append(
                {"library": library, "name": name, "refused": refusal, "seconds": time.perf_counter() - started}
            )
            print(f"{library}:{name}  {refusal or 'trains and resumes'}", flush=True)
    works = Counter(row["library"] for row in rows if row["refused"] is None)
    total = Counter(row["library"] for row in rows)
    for library in total:
        print(f"{library}: {works[library]} of {total[library]} train and resume")
    print(f"together: {works.total()} of {total.total()}")
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
