"""A search's folder ``<output>/<name>``: what was asked for, and a lock so that one program at a time works on it."""

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

from optuna.distributions import distribution_to_json

from search_spaces import Variant, expand
from tuner.core.errors import InvalidInput, masked, unknown
from tuner.core.retry import retry
from tuner.core.search_spec import SearchSpec, flag

SPEC_FILE, LOCK, LOG = "search.json", ".lock", "ray.log"
FILES_MADE_FIRST = (LOCK, LOG)
"""All that a search has written before its spec is saved."""


def with_name(spec: SearchSpec) -> SearchSpec:
    """The spec, named: after the workload and the time where no name was given."""
    name = spec.name or f"{spec.training.workload.data}-{datetime.now():%Y%m%d-%H%M%S}"
    return dataclasses.replace(spec, name=name)


def check_new(spec: SearchSpec) -> None:
    """Refuses the name of a search that exists."""
    assert spec.name is not None, "with_name comes first"
    folder = Path(spec.output) / spec.name
    if (folder / SPEC_FILE).exists():
        raise InvalidInput(f"--name {spec.name}: this search exists; go on with it by --resume {spec.name}")
    if (folder / "optuna.db").exists():
        raise InvalidInput(
            f"--name {spec.name}: {folder} holds a search whose {SPEC_FILE} is gone; choose another name"
        )


CHANGEABLE_ON_RESUME = frozenset(
    {
        "resume",
        "dry_run",
        "list",
        "download",
        "trials",
        "variants",
        "confirm_seeds",
        "baseline",
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
"""Fields that may differ when a search is resumed: they change no number of a trial that was already planned."""


@dataclass(frozen=True, slots=True)
class Process:
    """A program that worked on a search."""

    started_at: float
    """Seconds since 1970; the next likewise."""
    ended_at: float | None
    """None while it runs, and where it was killed."""
    versions: Mapping[str, str]
    """Package -> version, Python's too."""
    hardware: str
    slots: int
    """Trials at a time."""


def load(output: str, name: str, *, asked: str = "--resume") -> tuple[SearchSpec, str]:
    """A search as it was last started, and its id; ``asked`` is what messages say asked for it."""
    try:
        saved = json.loads((Path(output) / name / SPEC_FILE).read_text())
        saved["spec"].setdefault("confirm_seeds", 0)  # begun when there was no confirmation
        # Where it was found, which from another folder reads otherwise than from where it was started.
        return dataclasses.replace(SearchSpec.from_flags(**saved["spec"]), output=output), str(saved["id"])
    except OSError:
        searches = [path.parent.name for path in Path(output).glob(f"*/{SPEC_FILE}")]
        if searches:
            raise unknown(f"search in {output}", name, searches) from None
        raise InvalidInput(f"{asked} {name}: there is no search in {output}") from None
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise InvalidInput(f"{asked} {name}: its {SPEC_FILE} cannot be read ({error})") from None


def check_same(folder: Path, content: Mapping[str, str | None]) -> None:
    """Refuses to go on where a variant's space or the images have changed since they were saved."""
    saved = json.loads((folder / SPEC_FILE).read_text()).get("content", {})
    for name, old in saved.items():
        # None in what was saved before data known by name had a digest.
        if old is not None and name in content and content[name] != old:
            raise InvalidInput(f"--resume {folder.name}: {name} is not what it was when the search was started")


def refuse_changes(spec: SearchSpec, saved: SearchSpec) -> None:
    """Raises InvalidInput, by name, where resuming ``saved`` as this spec would change results."""
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
    kept = expand(spec.variants)
    if missing := [name for name in expand(saved.variants) if name not in kept]:
        raise InvalidInput(f"--variants: a resumed search keeps all its variants, {', '.join(missing)} too")


def _shown(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else masked(str(value))


def content_of(variants: Sequence[Variant], data_digest: str | None) -> dict[str, str | None]:
    """What a search depends on beside its spec, as short names of the content."""
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
    splits: str = "",
    program: Process | None = None,
) -> None:
    """Writes the spec, without passwords, whole or not at all; ``program`` is added to those that worked on it."""
    kept = spec.flags()
    for name in ("storage", "tracking_uri"):
        kept[name] = kept[name] and masked(kept[name])
    programs = [*processes_of(folder), *([program] if program else [])]
    _write(folder, {"id": search_id, "content": content, "splits": splits, "spec": kept}, programs)


def processes_of(folder: Path) -> tuple[Process, ...]:
    """The programs that have worked on a search, in order."""
    try:
        saved = json.loads((folder / SPEC_FILE).read_text()).get("programs", [])
    except FileNotFoundError:
        return ()
    return tuple(Process(**program) for program in saved)


def splits_of(folder: Path) -> str:
    """How the search's data is split, for the reader."""
    return str(json.loads((folder / SPEC_FILE).read_text()).get("splits", ""))


def note_end(folder: Path, ended_at: float) -> None:
    """The last program has done its work."""
    saved = json.loads((folder / SPEC_FILE).read_text())
    *before, last = processes_of(folder)
    _write(folder, saved, [*before, dataclasses.replace(last, ended_at=ended_at)])


def _write(folder: Path, content: Mapping[str, object], programs: Sequence[Process]) -> None:
    draft = folder / f"{SPEC_FILE}.new"
    listed = [dataclasses.asdict(program) for program in programs]
    text = json.dumps({**content, "programs": listed}, indent=2) + "\n"

    def write() -> None:
        draft.write_text(text)
        draft.replace(folder / SPEC_FILE)

    retry(str(folder / SPEC_FILE), write)


def new_id() -> str:
    """Tells this search from others of its name in a tracking server or storage that several people share."""
    return uuid.uuid4().hex


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes the folder and holds it for this program; the lock ends with the program, however that ends.

    Where bad input is found, or Ctrl-C comes, before the search was saved, what was made here goes again; what was in
    the folder before stays.
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
                with suppress(OSError):  # somebody put something there meanwhile
                    for path in made:
                        path.rmdir()
            raise
