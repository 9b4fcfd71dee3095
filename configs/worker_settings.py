"""What a job file says of workers: how many, where, with what, and how long they are waited for."""

from collections.abc import Mapping
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from configs.section import Section

Residency = Literal["auto", "gpu", "host", "disk"]


class WorkerSettings(Section):
    """Ray workers; each holds one live model."""

    count: int | Literal["auto"] = 1
    """Number of workers, of a cluster the most that are wanted: the search begins with those that
    find a place, and uses others when nodes join. ``auto`` is as many as fit, also while nodes come
    and go, and as an autoscaler may start nodes for: all that its limits allow, so a number is what
    bounds the cost. The default where ``device`` is ``cuda``."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the live model is."""
    cpus: float = Field(default=1.0, ge=0)
    """CPU cores that Ray reserves per worker."""
    gpus: float = Field(default=0.0, ge=0)
    """GPUs that Ray reserves per worker: a fraction of one, or a whole number. A model is spread
    over several. The default is 1 where ``device`` is ``cuda``."""
    threads: int = Field(default=1, ge=1)
    """torch threads per worker."""
    scoring_processes: int | None = Field(default=None, ge=0)
    """Processes per worker that score texts while the model goes on; 0 scores in the worker,
    afterwards. None is 0 on the CPU, whose cores the model wants, and beside a GPU one less than
    ``cpus``, but 2 at least and 8 at most: to use the cores of a node, let ``cpus`` be its cores by
    its GPUs."""
    timeout_s: float | None = Field(default=None, gt=0)
    """Seconds after which one evaluation is given up; None is no limit."""
    hang_factor: float | None = Field(default=10.0, gt=1)
    """An evaluation that takes this many times the running median of its kind (of other kinds, by
    items, until that is known), and more than ``hang_floor_s``, is tried on another worker; None
    waits for ever."""
    hang_floor_s: float = Field(default=60.0, gt=0)
    """Seconds below which no evaluation counts as hanging."""
    max_attempts: int = Field(default=2, ge=1)
    """How many workers a candidate may kill or hang before it is recorded as failed. A lost node
    does not count."""
    start_timeout_s: float = Field(default=1800.0, gt=0)
    """Seconds that a search waits without any worker before it ends, to be resumed. Nodes that an
    autoscaler starts must be up by then, with the models."""
    grace_s: float = Field(default=20.0, ge=0)
    """Seconds that evaluations under way get to finish when SIGTERM asks the search to end."""
    residency: Residency = "auto"
    """Where checkpoints are kept between candidates: in the memory of the GPU, in that of the
    host, or on disk, read anew for every candidate. ``auto`` takes the fastest with room."""
    address: str | None = None
    """Ray cluster to join (``auto``, ``host:port``, ``ray://host:port``); None starts Ray on this
    machine."""

    @field_validator("count", mode="plain", json_schema_input_type=int | Literal["auto"])
    @classmethod
    def _number_or_auto(cls, value: object) -> object:
        is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        if value == "auto" or is_count:
            return value
        raise ValueError(f"must be a whole number >= 1 or `auto`, found `{value}`")

    @model_validator(mode="before")
    @classmethod
    def _one_worker_per_gpu(cls, value: object) -> object:
        if isinstance(value, Mapping) and value.get("device") == "cuda":
            return {"count": "auto", "gpus": 1.0, **value}
        return value

    @model_validator(mode="after")
    def _gpu_has_device(self) -> Self:
        if self.device == "cuda" and self.gpus == 0:
            raise ValueError("device is `cuda` but gpus is 0; reserve at least a share of a GPU")
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise ValueError(
                f"gpus is {self.gpus:g}; Ray reserves a fraction of one GPU, or a whole number"
            )
        if self.residency == "gpu" and self.device != "cuda":
            raise ValueError(
                f"residency is `gpu` but device is `{self.device}`; choose `auto`, `host` or `disk`"
            )
        return self
