"""Everything that can be wrong with a job, found before anything is started or evaluated.

:func:`prepare` runs every check that can be run and raises all that it found at once; what it
returns is all that a search needs. What the machine must have for it is in
``optimizer.preflight.machine_check``. It imports no Ray.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from configs.errors import (
    CheckpointError,
    ConfigError,
    CorruptCheckpointError,
    JobChangedError,
    Problem,
)
from configs.evaluation import SPLITS
from configs.place import FilePlace
from configs.schema import JobConfig
from evaluators.manifest import Manifest
from optimizer.archive.archive import Archive
from optimizer.archive.store import backend_of
from optimizer.baselines import Baseline
from optimizer.dispatch_plan import planned
from optimizer.given_baselines import resolve_baselines
from optimizer.preflight.checks import Checks
from optimizer.preflight.dry_run import try_prompts, try_scorers
from optimizer.preflight.estimate import (
    Estimate,
    digest_seconds,
    estimate,
    format_bytes,
    format_seconds,
)
from optimizer.preflight.machine_check import (
    check_device,
    check_memory,
    check_sandbox,
    core_warnings,
    disk_warnings,
    sandbox_warnings,
    why_not_writable,
)
from optimizer.preflight.telemetry_check import check_telemetry
from optimizer.results.findings import findings_before
from optimizer.space import SearchSpace, check_method
from optimizer.strategies.registry import check_strategy
from workers.architecture import architecture_of, is_causal, model_class
from workers.checkpoint import CheckpointReader
from workers.compat import PoolReport, check_compatible
from workers.digest import undigested_bytes
from workers.sources import Sources, resolve_sources
from workers.tiers import machine_of

if TYPE_CHECKING:
    from evaluators.evaluator import TaskDescription
    from evaluators.suite import JobSuite

# Some seconds of reading: below, nobody needs to be told.
_LONG_DIGEST_BYTES = 10_000_000_000


@dataclass(frozen=True, slots=True)
class Prepared:
    """A job that can be run: what was resolved on the way, and what it will cost.

    ``baselines`` are those that the job names.
    """

    job: JobConfig
    sources: Sources
    manifest: Manifest
    space: SearchSpace
    tasks: tuple["TaskDescription", ...]
    pool: PoolReport
    estimate: Estimate
    warnings: tuple[str, ...]
    baselines: tuple[Baseline, ...] = ()

    def new_archive(self, job_path: Path | None = None) -> Archive:
        """Make the archive of the job, open for writing.

        Args:
            job_path: The file of the job, whose text is kept; None where it says something else.

        Raises:
            ArchiveExistsError: There is one already.
        """
        return Archive.create(
            self.job.archive,
            job=self.job,
            job_path=job_path,
            sources=self.sources,
            manifest=self.manifest,
        )


def prepare(
    job: JobConfig,
    *,
    archive: "Archive | None" = None,
    headers_only: bool = False,
    announce: Callable[[str], None] = lambda _: None,
) -> Prepared:
    """Check a job as far as it goes without evaluating, and gather what a search needs.

    Args:
        job: The job to run.
        archive: The record to go on with; None for a new search, whose archive must not exist.
        headers_only: Read no tensor, so that terabytes can be checked: what comes back has no
            digests, and no search can be started with it.
        announce: Called with a sentence before something that takes long.

    Raises:
        ConfigError: The job cannot work as written, or several parts of it cannot.
        CheckpointError: Models are missing, damaged or do not fit together.
        EvaluationError: Generated code cannot be contained here.
        ArchiveError: There is such an archive already, or what it was made from has changed.
    """
    from evaluators.suite import JobSuite

    checks = Checks()
    warnings: list[str] = []
    checks.attempt(lambda: check_strategy(job))
    checks.attempt(lambda: check_method(job))
    sources = checks.attempt(lambda: resolve_sources(job.models, with_digests=False))
    if sources is not None and not headers_only:
        announce_digests(sources, announce)
        sources = checks.attempt(lambda: resolve_sources(job.models))
    pool, continues_texts = None, None
    if sources is not None:
        continues_texts = checks.attempt(lambda: _check_architecture(job, sources))
        pool = checks.attempt(
            lambda: check_compatible(
                sources, job.merge, job.models.vocabulary, headers_only=headers_only
            )
        )
    suite = checks.attempt(lambda: JobSuite(job.objectives, job.evaluation))
    checks.attempt(lambda: check_sandbox(job))
    checks.attempt(lambda: check_device(job))
    checks.attempt(lambda: check_telemetry(job))
    if archive is None:
        checks.attempt(lambda: _check_archive_path(job))
    elif sources is not None and suite is not None:
        checks.attempt(lambda: _check_unchanged(archive, sources, suite))
    space, given = None, None
    if sources is not None and pool is not None:
        space = SearchSpace(job, sources, dtype=pool.dtype, vocabulary=pool.vocabulary)
        given = checks.attempt(
            partial(
                resolve_baselines, job, sources, space, archive=archive, headers_only=headers_only
            )
        )
    cost, plan = None, None
    if sources is not None and pool is not None and space is not None and suite is not None:
        if not checks.errors:  # of the strategy, for one
            plan = planned(job, suite.manifest.items("search"))
        cost = estimate(
            job,
            pool,
            space,
            suite.manifest,
            suite.describe(),
            machine=machine_of(job.workers),
            given=given.baselines if given is not None else (),
            plan=plan,
        )
        checks.attempt(lambda: warnings.extend(check_memory(job, cost)))
        if continues_texts:
            checks.attempt(partial(try_prompts, job, sources, suite))
        untried = checks.attempt(partial(try_scorers, job, sources, suite, pool))
        warnings.extend(untried or ())
    if checks.errors or not (sources and pool and space and suite and cost and plan and given):
        raise checks.error()
    warnings += [*pool.warnings, *disk_warnings(job, cost), *core_warnings(job)]
    warnings += sandbox_warnings(job)
    warnings += findings_before(job, space, cost.baseline_evaluations, per_score=plan.per_score)
    warnings += [cost.tiers.warning] if cost.tiers.warning else []
    return Prepared(
        job=job,
        sources=replace(sources, coefficients=given.coefficients),
        manifest=suite.manifest if archive is None else archive.manifest,
        space=space,
        tasks=tuple(suite.describe()),
        pool=pool,
        estimate=cost,
        warnings=tuple(warnings),
        baselines=given.baselines,
    )


def announce_digests(sources: Sources, announce: Callable[[str], None]) -> None:
    """Say how long naming the checkpoints will take, where it takes long."""
    with ExitStack() as stack:
        readers = [
            stack.enter_context(CheckpointReader(source.directory)) for source in sources.everything
        ]
        size = undigested_bytes(readers)
    if size >= _LONG_DIGEST_BYTES:
        announce(
            f"reading {format_bytes(size)} of checkpoints once for their digests, which may take "
            f"{format_seconds(digest_seconds(size))}; they are remembered from then on "
            "(`mergefront check --headers-only` does without)"
        )


def _check_architecture(job: JobConfig, sources: Sources) -> bool:
    """Refuse models that no task of lm-eval can be asked of, where there are such tasks.

    Returns:
        Whether the models continue texts.

    Raises:
        CheckpointError: Transformers has no such class, or the model does not continue texts.
    """
    directory = sources.reference.directory
    with CheckpointReader(directory) as reader:
        config = reader.config
    if is_causal(config):
        return True
    model_class(config)
    tasks = [spec.task for part in job.objectives.values() for spec in part.lm_eval_tasks]
    if tasks:
        raise CheckpointError(
            f"{directory}: `{architecture_of(config)}` does not continue texts, so lm-eval cannot "
            f"score its merges on `{tasks[0]}`; use causal language models, or a scorer of your "
            "own (`scorer: file.py:function`)",
            path=str(directory),
        )
    return False


def _check_archive_path(job: JobConfig) -> None:
    backend = backend_of(job.archive)
    backend.refuse_existing()
    if not isinstance(backend.place, FilePlace):
        return
    path = backend.place.path
    if reason := why_not_writable(path):
        raise ConfigError.single("archive", f"{path} cannot be made: {reason}")


def _check_unchanged(archive: Archive, sources: Sources, suite: "JobSuite") -> None:
    """Refuse to mix scores of other weights, items or prompts into a record.

    Raises:
        CheckpointError: A checkpoint has other tensors now.
        JobChangedError: A task means something else now, or its items differ.
    """
    recorded = {source.name: source.digest for source in archive.sources.everything}
    for source in sources.everything:
        if source.digest != recorded.get(source.name):
            raise CorruptCheckpointError(
                f"{source.directory}: `{source.name}` has changed since the search began (digest "
                f"{source.digest[:12]}, archived {str(recorded.get(source.name))[:12]}); put the "
                "checkpoint back, or start a new search",
                path=str(source.directory),
            )
    before, now = archive.manifest, suite.manifest
    problems = [
        Problem(task, "its definition differs from the archived one")
        for task, digest in now.task_hashes.items()
        if digest != before.task_hashes.get(task)
    ]
    problems += [
        Problem(task, f"its items of the {split} split differ from the archived ones")
        for split in SPLITS
        for task, ids in now.items(split).items()
        if tuple(ids) != tuple(before.items(split).get(task, ()))
    ]
    if problems:
        raise JobChangedError(
            f"the tasks are not those that {archive.place} was scored on; put the task files back, "
            "or start a new search",
            problems,
        )
