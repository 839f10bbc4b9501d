"""Opens the parts of a search, or creates them: its studies, its folder, its runs in MLflow."""

from __future__ import annotations

import getpass
from pathlib import Path

from optuna import get_all_study_names

from search_spaces import Variant
from tuner.core.environment import commit, hardware, versions
from tuner.core.errors import InvalidInput, masked
from tuner.core.retry import retry
from tuner.core.search_spec import DEFAULT_TRACKING_URI, SearchSpec
from tuner.search.arguments import PROGRAM
from tuner.study.optuna_study import close_storage, open_storage, open_studies, study_name
from tuner.study.recorder import Recorder
from tuner.study.results import Search
from tuner.study.scheduler import TrialScheduler
from tuner.study.search_folder import CHANGEABLE_ON_RESUME, processes_of
from tuner.tracking.client import with_login_apart
from tuner.tracking.tracker import DataSet, Tracker
from tuner.workloads.check import SOURCES, Prepared


def check_storage(spec: SearchSpec) -> None:
    """Raises :class:`InvalidInput` if the given storage already holds studies of a new search's name."""
    if spec.storage is not None:
        assert spec.name is not None
        prefix, storage = study_name(spec.name, ""), open_storage(spec.storage)
        names = retry("Optuna's storage", lambda: get_all_study_names(storage))
        close_storage(storage)
        if any(name.startswith(prefix) for name in names):
            raise InvalidInput(f"--name {spec.name}: {masked(spec.storage)} already holds a search of this name")


def open_recorder(
    spec: SearchSpec, search_id: str, variants: tuple[Variant, ...], data: Prepared, folder: Path
) -> Recorder:
    """The recorder of a search, with its studies, folders and runs in MLflow; creates those that are missing."""
    storage = open_storage(spec.storage or f"sqlite:///{folder / 'optuna.db'}")
    # First, because it may find that the storage is not this search's.
    studies = open_studies(spec, variants, storage, search=folder.name)
    tracking = Tracker(
        uri=with_login_apart(spec.tracking_uri or DEFAULT_TRACKING_URI),
        experiment=spec.experiment,
        search=folder.name,
        search_id=search_id,
        parameters={
            name: masked(value) if isinstance(value, str) else value
            for name, value in spec.flags().items()
            if name not in CHANGEABLE_ON_RESUME | {"name", "output"} and value is not None
        },
        tags={**_provenance(folder.name), "splits": data.note},
        dataset=DataSet(
            name=spec.training.workload.data,
            digest=data.digest,
            source=spec.training.workload.data_dir or SOURCES[spec.training.workload.data],
            sizes=data.sizes,
            num_classes=data.num_classes,
        ),
        system_metrics=spec.system_metrics,
    )
    by_variant = {name: study.study for name, study in studies.items()}
    search = Search(spec, search_id, variants, folder, by_variant, processes_of(folder), data.note)
    retry("--checkpoints", search.root.make)
    return Recorder(TrialScheduler(search, studies), tracking, storage)


def _provenance(search: str) -> dict[str, str]:
    """Tags of every run of a search: user, code, versions, hardware."""
    source = commit()
    return {
        "tuner.search": search,
        "mlflow.user": getpass.getuser(),
        "mlflow.source.name": PROGRAM,
        "mlflow.source.type": "LOCAL",
        "hardware": hardware(),
        **{f"version.{package}": number for package, number in versions().items()},
        **({"mlflow.source.git.commit": source} if source else {}),
    }
