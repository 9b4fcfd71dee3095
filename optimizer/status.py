"""How far a search is, as JSON: what the command ``status`` prints and the service answers."""

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optimizer.archive.store import backend_of
from optimizer.candidate import SAMPLED
from optimizer.live import format_duration
from optimizer.stopped import num_evaluated

if TYPE_CHECKING:
    from optimizer.archive.archive import Archive


@dataclass(frozen=True, slots=True)
class Recorded:
    """How far a search is, by its record.

    Attributes:
        evaluations: How many are recorded.
        in_flight: How many are in flight or lost.
        stopped: Reason -> candidates that were stopped for it.
        validated: Held-out split -> candidates that were scored on it.
        failures: Stage and kind of error -> how many failed so.
        choice: Candidate that it chose last; None before.
        is_finished: Whether that one was scored on the report items.
    """

    evaluations: int
    in_flight: int
    stopped: dict[str, int]
    validated: dict[str, int]
    failures: dict[str, int]
    choice: int | None
    is_finished: bool


def recorded_of(archive: "Archive") -> Recorded:
    """Read how far a search is; the same as long as the archive counts the same."""
    observations, choice = archive.observations(), archive.choice()
    reasons = (found.stop.reason for found in archive.stops().values())
    proposed = sum(not candidate.is_attribution for candidate in archive.candidates())
    failed = (outcome for outcome in archive.outcomes("search") if not outcome.scores)
    return Recorded(
        evaluations=num_evaluated(archive),
        in_flight=proposed - len(observations),
        stopped=dict(Counter(reason for reason in reasons if reason != SAMPLED)),
        validated={split: len(archive.outcomes(split)) for split in ("select", "report")},
        failures=dict(Counter(f"{found.stage}: {found.error_class}" for found in failed)),
        choice=choice,
        is_finished=choice is not None and choice in archive.scores("report"),
    )


def status_record(archive: "Archive") -> dict[str, Any]:
    """Return what is recorded of a search, who writes it, what to do next, and the verdict."""
    recorded, elapsed_s = recorded_of(archive), archive.elapsed_s
    writer = backend_of(archive.place).owner()
    if writer is not None:
        where = "" if writer.is_here else f" on {writer.host}"
        state, advice = "running", f"process {writer.pid}{where}"
    elif recorded.is_finished:
        state, advice = "finished", f"see it with `mergefront report {archive.place}`"
    else:
        state, advice = "interrupted", f"continue with `mergefront resume {archive.place}`"
    return {
        "name": archive.job.name,
        "state": state,
        "advice": advice,
        "archive": str(archive.place),
        "job": None if archive.job_path is None else str(archive.job_path),
        "created_at": archive.created_at,
        "evaluations": {
            "recorded": recorded.evaluations,
            "in flight or lost": recorded.in_flight,
            "budget": archive.job.budget.evaluations,
        },
        "stopped": recorded.stopped,
        "validated": recorded.validated,
        "failures": recorded.failures,
        "elapsed": format_duration(elapsed_s),
        "elapsed_s": elapsed_s,
        "choice": recorded.choice,
        "writer": None if writer is None else writer.pid,
        "writer_host": None if writer is None else writer.host,
        "verdict": archived_verdict(archive) if recorded.is_finished else None,
    }


def archived_verdict(archive: "Archive") -> dict[str, object] | None:
    """Return the verdict as JSON; None before the chosen merge was scored on report items."""
    from optimizer.archive.recorded_space import recorded_space
    from optimizer.results.verdict import verdict
    from optimizer.results.verdict_view import verdict_record

    found = verdict(archive, recorded_space(archive))
    return None if found is None else verdict_record(found)
