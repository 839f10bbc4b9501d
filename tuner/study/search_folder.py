"""A search's folder ``<output>/<name>``: its spec, and a lock that admits one process at a time."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from optuna.distributions import distribution_to_json

from search_spaces import Variant, expand
from tuner.core.errors import InvalidInput, masked, unknown
from tuner.core.metrics import ACCURACY
from tuner.core.retry import retry
from tuner.core.search_spec import SearchSpec, flag
from tuner.study.saved_variants import as_data, from_data

SPEC_FILE, LOCK, LOG = "search.json", ".lock", "ray.log"
SECONDS = "seconds_per_gradient_evaluation"
"""Key of the measured seconds in a search's spec file."""
FILES_MADE_FIRST = (LOCK, LOG)
"""The files that a search writes before it saves its spec."""


def with_name(spec: SearchSpec) -> SearchSpec:
    """The spec with a name: the given one, or else the workload and the time."""
    data = spec.training.workload.data.replace(":", "-")  # a folder's name, also for a function of the user's own
    name = spec.name or f"{data}-{datetime.now():%Y%m%d-%H%M%S}"
    return dataclasses.replace(spec, name=name)


def check_new(spec: SearchSpec) -> None:
    """Raises :class:`InvalidInput` if a search of this name exists."""
    assert spec.name is not None, "with_name comes first"
    folder = Path(spec.output) / spec.name
    if (folder / SPEC_FILE).exists():
        raise InvalidInput(f"--name {spec.name}: this search exists; resume it with --resume {spec.name}")
    if (folder / "optuna.db").exists():
        raise InvalidInput(
            f"--name {spec.name}: {folder} holds a search whose {SPEC_FILE} is missing; choose another name"
        )


CHANGEABLE_ON_RESUME = frozenset(
    {
        "resume",
        "dry_run",
        "list",
        "download",
        "trials",
        "variants",
        "confirm",
        "confirm_seeds",
        "refine_trials",
        "resume_check",
        "system_metrics",
        "max_concurrent",
        "max_failures",
        "time_budget",
        "address",
        "storage",
        "tracking_uri",
        "checkpoint_seconds",
    }
)
"""Flags that may differ when a search is resumed: they change no result of a trial that is already planned."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process that worked on a search."""

    started_at: float
    """When it started, in seconds since 1970."""
    ended_at: float | None
    """When it ended, in seconds since 1970; None while it runs and if it was killed."""
    versions: Mapping[str, str]
    """Package -> version, Python's included."""
    hardware: str
    """The machine that it ran on, in words."""
    slots: int
    """Number of trials at a time."""


def load(output: str, name: str, *, asked: str = "--resume") -> tuple[SearchSpec, str]:
    """The spec of a search, as it was last started, and its id.

    Raises :class:`InvalidInput` if there is no such search or its spec cannot be read; ``asked`` begins the message.
    """
    try:
        saved = json.loads((Path(output) / name / SPEC_FILE).read_text())
        if "round_size" not in saved["spec"]:
            raise ValueError("it is of a version that did not race variants")
        # The folder where it was found: the saved one may be relative to another working folder.
        spec = dataclasses.replace(SearchSpec.from_flags(**saved["spec"]), output=output)
        measured = tuple(map(float, saved.get("targets") or ()))
        return (spec.with_targets(measured) if spec.targets == "auto" else spec), str(saved["id"])
    except OSError:
        searches = [path.parent.name for path in Path(output).glob(f"*/{SPEC_FILE}")]
        if searches:
            raise unknown(f"search in {output}", name, searches) from None
        raise InvalidInput(f"{asked} {name}: there is no search in {output}") from None
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise InvalidInput(f"{asked} {name}: its {SPEC_FILE} cannot be read ({error})") from None


def check_same(folder: Path, content: Mapping[str, str | None]) -> None:
    """Raises :class:`InvalidInput` if a variant's space or the data has changed since the search was started."""
    saved = _saved(folder).get("content", {})
    for name, old in saved.items():
        # Older searches saved None for data known by name, which had no digest.
        if old is not None and name in content and content[name] != old:
            raise InvalidInput(f"--resume {folder.name}: {name} has changed since the search was started")


def refuse_changes(spec: SearchSpec, saved: SearchSpec) -> None:
    """Raises :class:`InvalidInput`, with the flag, if resuming ``saved`` as this spec would change results."""
    before = saved.flags()
    for name, new in spec.flags().items():
        old = before[name]
        if old != new and name not in CHANGEABLE_ON_RESUME:
            raise InvalidInput(
                f"{flag(name)} {_shown(new)}: search {saved.name!r} was started with {_shown(old)}, "
                "and a resumed search keeps it"
            )
    if spec.trials < saved.trials:
        raise InvalidInput(f"--trials {spec.trials}: a resumed search keeps its {saved.trials} trials or adds some")
    if spec.confirm_seeds < saved.confirm_seeds:
        raise InvalidInput(
            f"--confirm-seeds {spec.confirm_seeds}: a resumed search keeps its {saved.confirm_seeds} or adds some"
        )
    if spec.refine_trials < saved.refine_trials:
        raise InvalidInput(
            f"--refine-trials {spec.refine_trials}: a resumed search keeps its {saved.refine_trials} or adds some"
        )
    if saved.confirm == "all" and spec.confirm != "all":
        raise InvalidInput(f"--confirm {spec.confirm}: a resumed search that confirms all variants goes on doing so")
    kept = expand(spec.variants)
    if missing := [name for name in expand(saved.variants) if name not in kept]:
        raise InvalidInput(f"--variants: a resumed search keeps all its variants, {', '.join(missing)} too")


def _shown(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else masked(str(value))


def content_of(variants: Sequence[Variant], data_digest: str | None) -> dict[str, str | None]:
    """What a search depends on besides its spec: a digest of each variant's space, and that of the data."""
    spaces = {
        f"variant {variant.name}": json.dumps(
            [
                dict(variant.fixed),
                {name: distribution_to_json(d) for name, d in variant.searched.items()},
                dict(variant.when),
                [dict(point) for point in variant.enqueued.values()],
            ],
            sort_keys=True,
        )
        for variant in variants
    }
    digests = {name: hashlib.sha256(space.encode()).hexdigest()[:16] for name, space in spaces.items()}
    return {**digests, "the data": data_digest}


def save(
    folder: Path,
    spec: SearchSpec,
    search_id: str,
    content: Mapping[str, str | None],
    *,
    variants: Sequence[Variant] = (),
    splits: str = "",
    score: str = ACCURACY,
    process: Process | None = None,
) -> None:
    """Writes the spec, without passwords, whole or not at all; adds ``process`` to the processes of the search."""
    kept = spec.flags()
    for name in ("storage", "tracking_uri"):
        kept[name] = kept[name] and masked(kept[name])
    processes = [*processes_of(folder), *([process] if process else [])]
    content_of_file = {
        "id": search_id,
        "content": content,
        "splits": splits,
        "score": score,
        "targets": list(spec.training.targets) if spec.targets == "auto" else [],
        SECONDS: seconds_of(folder),
        "spec": kept,
        "variants": as_data(variants),
    }
    _write(folder, content_of_file, processes)


def variants_of(folder: Path) -> tuple[Variant, ...]:
    """The search's variants, as it was last started; none if a version that kept none has written the folder.

    Raises :class:`InvalidInput` if they cannot be read.
    """
    try:
        return from_data(_saved(folder).get("variants", []))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InvalidInput(f"search {folder.name}: the variants in its {SPEC_FILE} cannot be read ({error})") from None


def processes_of(folder: Path) -> tuple[Process, ...]:
    """The processes that have worked on a search, in order."""
    try:
        saved = _saved(folder).get("programs", [])
    except FileNotFoundError:
        return ()
    return tuple(Process(**process) for process in saved)


def splits_of(folder: Path) -> str:
    """How the search's data is split, in words."""
    return str(_saved(folder).get("splits", ""))


def score_of(folder: Path) -> str:
    """Name of the score that the search's validations are measured by."""
    return str(_saved(folder).get("score", ACCURACY))


def save_targets(folder: Path, targets: Sequence[float]) -> None:
    """Saves the targets that a search has measured."""
    saved = _saved(folder)
    _write(folder, {**saved, "targets": list(targets)}, processes_of(folder))


def seconds_of(folder: Path) -> dict[str, float | None]:
    """Variant -> seconds per gradient evaluation that the search has measured; None where no timing gave a figure."""
    try:
        return dict(_saved(folder).get(SECONDS, {}))
    except FileNotFoundError:
        return {}


def save_seconds(folder: Path, seconds: Mapping[str, float | None]) -> None:
    """Saves the seconds per gradient evaluation of all variants that have been measured."""
    saved = _saved(folder)
    _write(folder, {**saved, SECONDS: dict(seconds)}, processes_of(folder))


def note_end(folder: Path, ended_at: float) -> None:
    """Saves when the last process ended its work, in seconds since 1970."""
    saved = _saved(folder)
    *before, last = processes_of(folder)
    _write(folder, saved, [*before, dataclasses.replace(last, ended_at=ended_at)])


def _saved(folder: Path) -> dict[str, Any]:
    saved: dict[str, Any] = json.loads((folder / SPEC_FILE).read_text())
    return saved


def _write(folder: Path, content: Mapping[str, object], processes: Sequence[Process]) -> None:
    draft = folder / f"{SPEC_FILE}.new"
    listed = [dataclasses.asdict(process) for process in processes]
    text = json.dumps({**content, "programs": listed}, indent=2) + "\n"

    def write() -> None:
        draft.write_text(text)
        draft.replace(folder / SPEC_FILE)

    retry(str(folder / SPEC_FILE), write)


def new_id() -> str:
    """A random id, which tells a search from others of its name on a shared tracking server or storage."""
    return uuid.uuid4().hex


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes the folder and locks it for this process; the lock ends with the process, however that ends.

    On bad input or Ctrl-C before the search is saved, what was made here is deleted again.  What was in the folder
    before stays.  Raises :class:`InvalidInput` if another process holds the lock.
    """
    made = [path for path in [folder, *folder.parents] if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    present = set(folder.iterdir())
    with (folder / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InvalidInput(f"search {folder.name} is being run by another program") from None
        try:
            yield
        except BaseException:
            if not (folder / SPEC_FILE).exists():
                for name in FILES_MADE_FIRST:
                    if folder / name not in present:
                        (folder / name).unlink(missing_ok=True)
                with suppress(OSError):  # another process has put something there meanwhile
                    for path in made:
                        path.rmdir()
            raise
