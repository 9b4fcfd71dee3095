"""Searches as jobs of a Ray cluster: its Jobs API, with what goes wrong said in our words.

Everything goes through the cluster's dashboard over HTTP; this process joins no cluster. Where to
start: :class:`JobClient`, which first finds out that somebody answers, wants no other token, and
runs the Ray that is installed here.
"""

import asyncio
import json
import logging
import math
import os
import shlex
import ssl
import time
import warnings
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.client import BadStatusLine, HTTPException
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from configs.errors import ClusterError
from workers.cluster_token import find_token

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

MARK = "mergefront"
"""Key of the metadata by which our jobs are found among others."""

_ANSWER_S = 10.0
# What Ray itself needs to stop a job, and for jobs that do not say how long they may take to end.
_STOP_S = 15.0
_END_S = 15.0
# Ray kills a job that is asked to stop after 3 s, unless the job's environment says otherwise.
_END_VARIABLE = "RAY_JOB_STOP_WAIT_TIME_S"
_END_KEY = "end_s"
_POLL_S = 0.5
_TLS_END_S = 1.0
# Ray lets these decide about the address, whatever it is given.
_ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
_ENDED = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})


@dataclass(frozen=True, slots=True)
class ClusterAccess:
    """How to reach a cluster.

    ``address`` is that of the dashboard, ``http(s)://HOST:PORT``. Without ``token_file`` the token
    is where Ray looks for it: ``RAY_AUTH_TOKEN``, ``RAY_AUTH_TOKEN_PATH``, ``~/.ray/auth_token``.
    ``ca`` is a file or directory of certificates to trust; ``verify`` False trusts any.
    """

    address: str
    token_file: Path | None = None
    ca: Path | None = None
    verify: bool = True

    @property
    def options(self) -> str:
        """How a command says the same, for commands that are shown."""
        words = ["--address", self.address]
        words += ["--token-file", str(self.token_file)] if self.token_file else []
        words += ["--tls-ca", str(self.ca)] if self.ca else []
        words += [] if self.verify else ["--tls-insecure"]
        return shlex.join(words)


@dataclass(frozen=True, slots=True)
class JobFacts:
    """What a cluster knows of a job; ``metadata`` is what it was submitted with.

    ``status`` is Ray's: ``PENDING``, ``RUNNING``, ``SUCCEEDED``, ``FAILED`` or ``STOPPED``.
    ``started_at`` is in seconds since 1970.
    """

    job_id: str
    status: str
    message: str
    metadata: Mapping[str, str]
    exit_code: int | None
    started_at: float | None

    @property
    def has_ended(self) -> bool:
        """Whether its process has ended."""
        return self.status in _ENDED


class JobClient:
    """Submits jobs to a cluster, and follows them.

    Raises:
        ClusterError: Nobody answers at the address, or another service does; the token is missing
            or wrong; the certificate is not trusted; or the cluster runs another Ray.
    """

    def __init__(self, access: ClusterAccess) -> None:
        self.address = access.address.rstrip("/")
        self._options = replace(access, address=self.address).options
        _check_address(self.address)
        token = find_token(access.token_file)
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        _check_version(self.address, self._ask_version(access, headers))
        from ray.job_submission import JobSubmissionClient

        if not access.verify:
            # Whoever asked for that knows, and need not read it for every request.
            warnings.filterwarnings("ignore", message="Unverified HTTPS request")
        # They would say what they pack and upload.
        for name in ("ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging"):
            logging.getLogger(name).setLevel(logging.WARNING)
        with self._our_errors(), _without_variables(_ADDRESS_VARIABLES):
            self._client = JobSubmissionClient(
                self.address, headers=headers, verify=str(access.ca) if access.ca else access.verify
            )

    def submit(
        self,
        job_id: str,
        entrypoint: str,
        directory: Path,
        *,
        metadata: Mapping[str, str],
        environment: Mapping[str, str],
        end_s: float,
    ) -> None:
        """Send a directory to the cluster and start a command in it, on the head node.

        Args:
            job_id: New on this cluster.
            entrypoint: For a shell; the directory is its working directory, and that of all
                workers that it starts.
            directory: What the job needs; at most some 100 MB.
            metadata: Texts that are shown with the job.
            environment: Variables of the command and its workers.
            end_s: Seconds that the command has to end when it is stopped.
        """
        variables = {_END_VARIABLE: str(math.ceil(end_s)), **environment}
        runtime: dict[str, Any] = {"working_dir": str(directory), "env_vars": variables}
        with self._our_errors():
            self._client.submit_job(
                entrypoint=entrypoint,
                submission_id=job_id,
                runtime_env=runtime,
                metadata={MARK: "1", _END_KEY: f"{end_s:g}", **metadata},
            )

    def facts(self, job_id: str) -> JobFacts:
        """Look a job up.

        Raises:
            ClusterError: The cluster knows no such job.
        """
        with self._our_errors(job_id):
            return _facts(self._client.get_job_info(job_id))

    def jobs(self) -> list[JobFacts]:
        """Return the searches that were launched on this cluster, oldest first."""
        with self._our_errors():
            found = [_facts(details) for details in self._client.list_jobs()]
        ours = [facts for facts in found if MARK in facts.metadata]
        return sorted(ours, key=lambda facts: facts.started_at or 0.0)

    def logs(self, job_id: str) -> str:
        """Return what a job has printed so far; its logs live as long as the head's disk."""
        with self._our_errors(job_id):
            return str(self._client.get_job_logs(job_id))

    def follow(self, job_id: str) -> Iterator[str]:
        """Yield what a job prints, as it does, until it ends."""
        chunks = self._client.tail_job_logs(job_id)
        with asyncio.Runner() as runner, self._our_errors(job_id):
            try:
                while True:
                    yield runner.run(_next_of(chunks))
            except StopAsyncIteration:
                if self.address.startswith("https"):
                    # What ends a connection over TLS is exchanged after its session was closed.
                    runner.run(asyncio.sleep(_TLS_END_S))

    def stop(self, job_id: str) -> JobFacts:
        """Ask a job to end, and wait until it has.

        Raises:
            ClusterError: There is no such job, or it does not end.
        """
        with self._our_errors(job_id):
            self._client.stop_job(job_id)
        began = time.monotonic()
        while not (facts := self.facts(job_id)).has_ended:
            limit_s = float(facts.metadata.get(_END_KEY, _END_S)) + _STOP_S
            if time.monotonic() > began + limit_s:
                raise ClusterError(
                    f"job `{job_id}` did not end within {limit_s:g} s; ask again, or look at it "
                    f"with `ray job list --address {self.address}`"
                )
            time.sleep(_POLL_S)
        return facts

    @contextmanager
    def _our_errors(self, job_id: str = "") -> Iterator[None]:
        """Turn what the client raises, which are bare errors of all kinds, into one kind."""
        try:
            yield
        except (RuntimeError, OSError, ValueError, ConnectionError) as error:
            if job_id and "404" in str(error):
                raise ClusterError(
                    f"{self.address} knows no job `{job_id}`; `mergefront list {self._options}` "
                    "shows those that it knows"
                ) from error
            raise ClusterError(f"{self.address}: {error}") from error

    def _ask_version(self, access: ClusterAccess, headers: Mapping[str, str]) -> str:
        """Return the answer of a cluster to the question for its version."""
        url = f"{self.address}/api/version"
        trust = _tls(access)
        try:
            request = Request(url, headers=dict(headers))  # noqa: S310 - checked to be of http(s)
            with urlopen(request, timeout=_ANSWER_S, context=trust) as answer:  # noqa: S310 - the same
                return str(answer.read(10_000).decode())
        except HTTPError as error:
            raise ClusterError(_refusal(self.address, error.code, bool(headers))) from error
        except (BadStatusLine, UnicodeDecodeError) as error:
            # Its words may be anything: a port of gRPC answers in bytes that terminals obey.
            raise ClusterError(
                f"{self.address} is no dashboard of Ray: what answers there does not speak HTTP. "
                "Check the port (8265 by default; 6379 and 10001 are other ports of the head)"
            ) from error
        except (URLError, HTTPException, OSError) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, ssl.SSLError):
                raise ClusterError(
                    f"cannot trust {self.address}: {reason}. Name its certificate with --tls-ca, "
                    "or check https against http"
                ) from error
            raise ClusterError(
                f"nobody answers at {self.address}: {reason}. Check the address (the dashboard of "
                "the head node, port 8265 by default), and that Ray runs there with "
                "`--dashboard-host` reachable from here"
            ) from error


def _check_address(address: str) -> None:
    parts = urlsplit(address)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ClusterError(
            f"the address must be that of the dashboard, such as http://HEAD:8265, found "
            f"`{address}`; `ray://` and `HOST:PORT` are for `mergefront run` (workers.address)"
        )


def _tls(access: ClusterAccess) -> ssl.SSLContext | None:
    if not access.address.startswith("https"):
        return None
    ca = access.ca
    try:
        context = ssl.create_default_context(
            cafile=str(ca) if ca and not ca.is_dir() else None,
            capath=str(ca) if ca and ca.is_dir() else None,
        )
    except OSError as error:
        raise ClusterError(f"{ca}: certificates cannot be read: {error}") from error
    if not access.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _refusal(address: str, code: int, has_token: bool) -> str:
    if code in {401, 403} and not has_token:
        return (
            f"{address} wants a token, and there is none: set RAY_AUTH_TOKEN or "
            "RAY_AUTH_TOKEN_PATH, or name a file with --token-file"
        )
    if code in {401, 403}:
        return f"{address} refuses the token (HTTP {code}); it is not that of this cluster"
    return (
        f"{address} is no dashboard of Ray (HTTP {code} instead of its version); check the address"
    )


def _check_version(address: str, answer: str) -> None:
    try:
        there = str(json.loads(answer)["ray_version"])
    except (ValueError, KeyError, TypeError) as error:
        raise ClusterError(
            f"{address} is no dashboard of Ray (no version in its answer); check the address"
        ) from error
    if there != (here := version("ray")):
        raise ClusterError(
            f"{address} runs Ray {there}, here is Ray {here}: install the cluster's version here "
            f"(`pip install 'ray[default]=={there}'`), or this one on the cluster"
        )


@contextmanager
def _without_variables(names: tuple[str, ...]) -> Iterator[None]:
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def _facts(details: "JobDetails") -> JobFacts:
    status, started = details.status, details.start_time
    return JobFacts(
        job_id=str(details.submission_id),
        status=str(getattr(status, "value", status)),
        message=details.message or "",
        metadata=dict(details.metadata or {}),
        exit_code=details.driver_exit_code,
        started_at=None if started is None else started / 1000.0,
    )


async def _next_of(chunks: AsyncIterator[str]) -> str:
    return await anext(chunks)
