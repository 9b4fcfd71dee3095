"""The sections of a written report on what a search cost, what failed, and how to repeat it."""

import platform
import shlex
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import yaml

from optimizer.archive.schema import mergefront_version
from optimizer.live import format_duration
from optimizer.report.document import Code, Section, Table
from optimizer.report.report import Report
from optimizer.spending import spending_of
from optimizer.stopped import describe_savings

if TYPE_CHECKING:
    from optimizer.archive.archive import Archive

_LIBRARIES = ("torch", "transformers", "lm-eval", "tokenizers", "ray", "numpy")
# Characters of an error that a table shows.
_MESSAGE = 200


def cost_section(archive: "Archive", report: Report) -> Section:
    """Say what was spent, and what stopping candidates saved."""
    section = Section("cost", "What it cost")
    spending, job = spending_of(archive), archive.job
    gpu_hours = spending.worker_s * job.workers.gpus / 3600
    rows = [
        ("evaluations", str(report.num_outcomes)),
        ("search items scored", f"{spending.items['scores']}"),
        ("wall time", format_duration(report.elapsed_s)),
        ("worker time on the search", format_duration(spending.worker_s)),
        ("model time on the search", format_duration(sum(spending.model_s.values()))),
        ("GPU hours of the search", f"{gpu_hours:.2f}" if job.workers.gpus else "none: no GPU"),
    ]
    if spending.items["companions"]:
        rows.insert(2, ("references looked at", f"{spending.items['companions']}"))
    held_out = [
        sum(outcome.seconds.values())
        for split in ("select", "report")
        for outcome in archive.evaluations(split)
    ]
    rows.append(("worker time on held-out items", format_duration(sum(held_out))))
    section.add(Table(("what", "how much"), tuple(rows), numeric=frozenset({1})))
    section.list(f"{line}." for line in describe_savings(report.savings))
    return section


def failures_section(archive: "Archive") -> Section:
    """List the kinds of failures with an example of each."""
    section = Section("failures", "What failed")
    failed = [outcome for outcome in archive.evaluations() if outcome.scores is None]
    counts = Counter((str(outcome.stage), outcome.error_class or "") for outcome in failed)
    examples: dict[tuple[str, str], tuple[int, str]] = {}
    for outcome in failed:
        kind = (str(outcome.stage), outcome.error_class or "")
        examples.setdefault(kind, (outcome.key.candidate, outcome.message or ""))
    rows = tuple(
        (stage, error, str(count), *_example(*examples[stage, error]))
        for (stage, error), count in counts.most_common()
    )
    if rows:
        columns = ("stage", "error", "count", "first candidate", "message")
        section.add(Table(columns, rows, numeric=frozenset({2, 3})))
    return section


def _example(candidate: int, message: str) -> tuple[str, str]:
    text = " ".join(message.split())
    return str(candidate), text if len(text) <= _MESSAGE else f"{text[: _MESSAGE - 1]}…"


def reproduce_section(archive: "Archive", report: Report) -> Section:
    """Give commands, digests, versions and the job."""
    section, job = Section("reproduce", "How to reproduce it"), archive.job
    name = "JOB.yaml" if archive.job_path is None else archive.job_path.name
    name, place = shlex.quote(name), shlex.quote(archive.place.public_name)
    lines = [f"mergefront run {name}", f"mergefront resume {place} --verify"]
    if report.choice is not None:
        lines.append(f"mergefront export {place} --id {report.choice.short_id} --out merged")
    section.add(Code("\n".join(lines), "bash"))
    digests = [("job", job.digest), ("search", archive.uid)]
    if report.choice is not None:
        index = report.choice.candidate.index
        digests.append(("chosen recipe", report.choice.candidate.recipe.recipe_id))
        digests.append(("chosen weights (xxh3-128)", archive.weights_digest(index)))
    section.add(Table(("digest of", "value"), tuple(digests)))
    runs = tuple(
        (
            run.started_at[:19].replace("T", " "),
            format_duration(run.elapsed_s),
            run.mergefront_version,
        )
        for run in archive.runs()
    )
    section.add(Table(("run began (UTC)", "took", "mergefront"), runs, numeric=frozenset({1})))
    section.say(
        f"This report was written by mergefront {mergefront_version()} with "
        f"Python {platform.python_version()}, {', '.join(_versions())}. Merges have the same bits "
        "on the same kind of device; scores in float32 on the CPU are equal."
    )
    text = yaml.safe_dump(job.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    section.add(Code(text, "yaml", folded="The job, every key of it"))
    return section


def _versions() -> list[str]:
    found = []
    for library in _LIBRARIES:
        try:
            found.append(f"{library} {version(library)}")
        except PackageNotFoundError:
            continue
    return found
