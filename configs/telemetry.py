"""What a job file says of telemetry: the log, the metrics of Ray, and trackers.

None of it decides anything: it may change on resume.
"""

from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from configs.section import Section

WandbMode = Literal["offline", "online"]


class TensorBoardSettings(Section):
    """Event files for TensorBoard (``pip install 'mergefront[tensorboard]'``)."""

    directory: str = Field(min_length=1)
    """Log directory; each search writes into a directory of its own in it."""


class MlflowSettings(Section):
    """A run of MLflow (``pip install 'mergefront[mlflow]'``)."""

    uri: str = Field(min_length=1)
    """Tracking server (``http://HOST:PORT``), or an SQLite file, which is made where it is missing.
    Users and passwords of servers are in ``MLFLOW_TRACKING_USERNAME`` and
    ``MLFLOW_TRACKING_PASSWORD``."""
    experiment: str = Field(default="mergefront", min_length=1)
    """Experiment that the run belongs to; made where it is missing."""

    @property
    def is_file(self) -> bool:
        """Whether ``uri`` is the path of an SQLite file."""
        return "://" not in self.uri

    @field_validator("uri")
    @classmethod
    def _server_or_file(cls, text: str) -> str:
        if "://" not in text:
            return text
        parts = urlsplit(text)
        if parts.scheme not in ("http", "https"):
            raise ValueError(
                f"must be an http(s) URL or the path of an SQLite file, found `{parts.scheme}://`"
            )
        if parts.password is not None:
            raise ValueError(
                "must hold no password, since jobs and archives are shown to others; set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )
        return text


class WandbSettings(Section):
    """A run of Weights & Biases (``pip install 'mergefront[wandb]'``)."""

    project: str = Field(default="mergefront", min_length=1)
    """Project that the run belongs to."""
    mode: WandbMode = "offline"
    """``offline`` writes files, which ``wandb sync`` uploads; ``online`` sends as it goes, with the
    key that ``wandb login`` keeps or ``WANDB_API_KEY``."""
    directory: str = Field(default=".", min_length=1)
    """Where the directory ``wandb`` with the files of runs is made."""


class TelemetrySettings(Section):
    """Who is told of a search beside the person who watches it."""

    log_file: str | None = None
    """File that gets one JSON object per event and log record, with the ids of search, candidate
    and worker where they are known; it is appended to. None writes none. Processes of workers write
    such lines in any case, to the logs that Ray keeps on their nodes."""
    metrics: bool = True
    """Whether Ray exports counters of the search, at the metrics port of the driver's node."""
    tensorboard: TensorBoardSettings | None = None
    """Charts in TensorBoard; None makes none."""
    mlflow: MlflowSettings | None = None
    """Charts in MLflow; None makes none."""
    wandb: WandbSettings | None = None
    """Charts in Weights & Biases; None makes none."""
