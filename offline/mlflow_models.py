"""Models in MLflow: log a training as a run, register its model, note its release, and fetch it.

MLflow's variables, such as `MLFLOW_TRACKING_URI`, configure server, credentials and experiment.
"""

import contextlib
import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.models import Model as LoggedModel

from hotplate.offline.errors import DataError, SettingError
from hotplate.offline.evaluate.metrics import measured
from hotplate.offline.model import Description
from hotplate.offline.model_folder import describe
from hotplate.stores.folders import LOCK
from hotplate.stores.urls import redacted

# Default experiment, MLflow's flavor, and artifact folder.
EXPERIMENT = "hotplate"
FLAVOR = "hotplate"
_FOLDER = "model"
_OF_A_VERSION = re.compile(r"models:/[^/@]+[/@].")
# Facts of the data that are parameters of a run.
_FACTS = ("source", "fingerprint", "rows", "weighting", "half_life_s", "min_per_user", "min_per_item")
# Tags of a run (its job) and of a model version (its release and store).
_JOB = "hotplate.job"
_RELEASE = "hotplate.release"
_STORE = "hotplate.store"


@dataclass(frozen=True, slots=True)
class Tracking:
    """How a model is logged: as a version of the registered model *name*, if given, which may get an alias."""

    name: str | None = None
    alias: str | None = None

    @classmethod
    def of(cls, text: str | None) -> "Tracking":
        """Parse NAME or NAME@ALIAS, None not to register the model; raises SettingError."""
        if text is None:
            return cls()
        name, at, alias = text.partition("@")
        if not name or (at and not alias) or set(name) & set("/:"):
            raise SettingError(f"The model {text!r} cannot be registered; write NAME or NAME@ALIAS, as shop@champion.")
        return cls(name, alias or None)

    def log(self, folder: Path, job: str | None = None) -> "Logged":
        """Log a model folder to MLflow as a run, with its parameters and metrics, and register it.

        *job* is the id of a run of a pipeline. If an earlier attempt has logged it, that MLflow run is returned. Raises
        DataError if the server fails.
        """
        description = describe(folder)
        with _server_errors():
            experiment = _experiment()

            tags = dict[str, str]()
            if job is not None:
                logged = _finished_run(experiment, job, self)
                if logged is not None:
                    return logged
                tags[_JOB] = job

            with mlflow.start_run(experiment_id=experiment, tags=tags) as run:
                mlflow.log_params(_params(description))
                mlflow.log_metrics(_metrics(description))
                mlflow.log_dict(description.to_json(), "report.json")
                saved = LoggedModel.log(None, _Flavor, self.name, name=_FOLDER, folder=folder)

            version = None if saved.registered_model_version is None else str(saved.registered_model_version)
            return Logged(run.info.run_id, self, version)


@dataclass(frozen=True, slots=True)
class Logged:
    """A run of MLflow, and its registered model version, if any."""

    run: str
    tracking: Tracking
    version: str | None = None

    @property
    def uri(self) -> str:
        """MLflow's URI, such as models:/shop/3."""
        if self.tracking.name is None:
            return f"runs:/{self.run}/{_FOLDER}"
        return f"models:/{self.tracking.name}/{self.version}"

    def set_alias(self) -> None:
        """Move the alias, if any, to the logged version; raises DataError."""
        if self.tracking.alias is not None:
            with _server_errors():
                client = mlflow.MlflowClient()
                client.set_registered_model_alias(self.tracking.name, self.tracking.alias, self.version)

    def record_release(self, store: str, release: str) -> None:
        """Tag the version, if any, with the *release* made from it; raises DataError."""
        record_release(self.uri, store, release)


class _Flavor:
    """The functions that MLflow calls in the module of a flavor."""

    @staticmethod
    def save_model(path: str, mlflow_model: LoggedModel, folder: Path) -> None:
        """Write the model *folder* to *path*."""
        shutil.copytree(folder, Path(path) / _FOLDER, ignore=shutil.ignore_patterns(LOCK))
        mlflow_model.add_flavor(FLAVOR, data=_FOLDER)
        mlflow_model.save(str(Path(path) / "MLmodel"))


def fetch(uri: str, out: Path) -> Path:
    """Download a logged model below *out*, and return its folder; raises DataError."""
    with _server_errors():
        downloaded = mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(out))
    folder = Path(downloaded) / _FOLDER
    if not folder.is_dir():
        raise DataError(f"{uri} is not a model of hotplate; register one with hotplate train --register NAME.")
    return folder


def resolve(uri: str) -> str:
    """Replace an alias or `latest` in a models:/ URI by the version: `models:/shop@champion` becomes `models:/shop/3`.

    Other URIs are returned as they are, also those of a model's id, `models:/m-1a2b`. Raises DataError if MLflow fails
    or has no version.
    """
    if not _OF_A_VERSION.match(uri):
        return uri

    name, at, alias = uri.removeprefix("models:/").partition("@")
    name, _, version = name.partition("/")
    with _server_errors():
        client = mlflow.MlflowClient()
        if at:
            version = str(client.get_model_version_by_alias(name, alias).version)
        elif version == "latest":
            known = client.search_model_versions(f"name = '{name}'")
            if not known:
                raise DataError(f"MLflow has no version of the model {name!r}.")
            version = str(max(int(registered.version) for registered in known))
    return f"models:/{name}/{version}"


def record_release(uri: str, store: str, release: str) -> None:
    """Tag a model version with the *release* made from it; ignores URIs without a version."""
    name, _, version = uri.removeprefix("models:/").partition("/")
    if not _OF_A_VERSION.match(uri):
        return
    with _server_errors():
        client = mlflow.MlflowClient()
        client.set_model_version_tag(name, version, _RELEASE, release)
        client.set_model_version_tag(name, version, _STORE, redacted(store))


def _experiment() -> str:
    """Return the id of the experiment that MLflow's variables name, or of ours, which is created if missing."""
    if experiment_id := os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return experiment_id
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
    experiment = mlflow.get_experiment_by_name(name)
    return str(mlflow.create_experiment(name) if experiment is None else experiment.experiment_id)


def _finished_run(experiment: str, job: str, tracking: Tracking) -> Logged | None:
    """Return the finished MLflow run that is tagged with *job*, with its version of the registered model, if any.

    *experiment* is the id of MLflow's experiment. None if there is no such run, or none registered as *tracking* says.
    """
    wanted = f"tags.`{_JOB}` = '{job}' and status = 'FINISHED'"
    runs = mlflow.search_runs([experiment], filter_string=wanted, output_format="list")
    for run in runs:
        if tracking.name is None:
            return Logged(run.info.run_id, tracking)

        versions = mlflow.search_model_versions(
            filter_string=f"name = '{tracking.name}' and run_id = '{run.info.run_id}'"
        )
        if versions:
            return Logged(run.info.run_id, tracking, str(versions[0].version))
    return None


def _params(description: Description) -> dict[str, Any]:
    """Return the engine's parameters, and facts of the data."""
    of_data = {f"data.{name}": getattr(description.data, name) for name in _FACTS}
    return {"engine": description.engine, **description.params, **of_data}


def _metrics(description: Description) -> dict[str, float]:
    """Return the metrics of the model's lists, and the size of its matrix."""
    metrics: dict[str, float] = {
        "users": float(description.users),
        "items": float(description.items),
        "pairs": float(description.pairs),
    }
    evaluation = description.evaluation
    if evaluation is not None:
        metrics |= measured(evaluation.model)
    return metrics


@contextlib.contextmanager
def _server_errors() -> Iterator[None]:
    """Raise errors of MLflow as DataError, and print its messages to stderr."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except MlflowException as error:
        where = redacted(mlflow.get_tracking_uri())
        raise DataError(
            f"MLflow at {where} failed: {str(error).splitlines()[0]} (MLFLOW_TRACKING_URI names it)."
        ) from error
