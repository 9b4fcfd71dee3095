"""Runs of MLflow, on a tracking server or in an SQLite file."""

import logging
import os
import time
import warnings
from collections.abc import Mapping
from pathlib import Path

# Read when MLflow is imported. A tracker that cannot reach its server should be known soon (the
# default tries for minutes), and nobody asked to send statistics to MLflow's makers.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")

from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from configs.telemetry import MlflowSettings
from optimizer.telemetry.tracker import RunEnd, TrackedRun

_TAG = "mergefront.search"
_STATUS: Mapping[RunEnd, str] = {
    "finished": "FINISHED",
    "failed": "FAILED",
    "interrupted": "KILLED",
}
# What servers take at most.
_MAX_PARAMS, _MAX_VALUE = 100, 500


class MlflowTracker:
    """Keeps a search as one run, which has the search's id as a tag and is found again by it.

    Args:
        settings: The job's.
    """

    def __init__(self, settings: MlflowSettings) -> None:
        self._settings = settings
        self._client: MlflowClient | None = None
        self._run_id = ""
        # Its notes on making tables would tear the live view.
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        # MLflow 3.17 with SQLAlchemy 2.1.
        warnings.filterwarnings("ignore", message=r"The ``noload`` loader strategy")

    def start(self, run: TrackedRun) -> None:
        """Find the run of the search, or make it."""
        settings = self._settings
        uri = settings.uri
        if settings.is_file:
            Path(uri).parent.mkdir(parents=True, exist_ok=True)
            uri = f"sqlite:///{uri}"
        self._client = client = MlflowClient(tracking_uri=uri)
        experiment_id = self._experiment(client)
        found = client.search_runs([experiment_id], f"tags.`{_TAG}` = '{run.uid}'", max_results=1)
        if found:
            self._run_id = found[0].info.run_id
            client.update_run(self._run_id, status="RUNNING")
            return
        made = client.create_run(experiment_id, tags={_TAG: run.uid}, run_name=run.name)
        self._run_id = made.info.run_id
        params = [Param(key, str(value)[:_MAX_VALUE]) for key, value in run.params.items()]
        for first in range(0, len(params), _MAX_PARAMS):
            client.log_batch(self._run_id, params=params[first : first + _MAX_PARAMS])

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send metrics, all in one request."""
        now_ms = int(time.time() * 1000)
        values = [Metric(name, value, now_ms, step) for name, value in metrics.items()]
        self._open.log_batch(self._run_id, metrics=values)

    def note(self, name: str, text: str) -> None:
        """Keep a text as an artifact of the run."""
        self._open.log_text(self._run_id, text, f"{name}.txt")

    def close(self, end: RunEnd) -> None:
        """Mark the run as ended."""
        self._open.set_terminated(self._run_id, _STATUS[end])

    @property
    def _open(self) -> MlflowClient:
        if self._client is None:
            raise ValueError("the tracker was not started")
        return self._client

    def _experiment(self, client: MlflowClient) -> str:
        name = self._settings.experiment
        if (found := client.get_experiment_by_name(name)) is not None:
            return str(found.experiment_id)
        # Beside the file; the default is the working directory, whatever that is.
        place = None
        if self._settings.is_file:
            place = Path(f"{self._settings.uri}.artifacts").as_uri()
        return str(client.create_experiment(name, artifact_location=place))
