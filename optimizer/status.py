"""How far a search is, as JSON: what the command ``status`` prints and the service answers."""

from collections import Counter
from typing import TYPE_CHECKING, Any

from configs.evaluation import SPLITS
from optimizer.archive.store import backend_of
from optimizer.live import format_duration
from optimizer.stopped import num_evaluated, recorded_group_size

if TYPE_CHECKING:
    from optimizer.archive.archive import Archive


def status_record(archive: "Archive") -> dict[str, Any]:
    """Return what is recorded of a search, who writes it, what to do next, and the verdict."""
    return {**search_record(archive), "verdict": archived_verdict(archive)}


def search_record(archive: "Archive") -> dict[str, Any]:
    """Return the same without the verdict, which takes longer than all the rest."""
    outcomes = archive.outcomes("search")
    finished = {split: len(archive.outcomes(split)) for split in SPLITS}
    observations = archive.observations()
    choice = archive.choice()
    writer = backend_of(archive.place).owner()
    if writer is not None:
        where = "" if writer.is_here else f" on {writer.host}"
        state, advice = "running", f"process {writer.pid}{where}"
    elif is_finished(archive):
        state, advice = "finished", f"see it with `mergefront report {archive.place}`"
    else:
        state, advice = "interrupted", f"continue with `mergefront resume {archive.place}`"
    budget = archive.job.budget.evaluations
    return {
        "name": archive.job.name,
        "state": state,
        "advice": advice,
        "archive": str(archive.place),
        "job": None if archive.job_path is None else str(archive.job_path),
        "created_at": archive.created_at,
        "evaluations": {
            "recorded": num_evaluated(observations, recorded_group_size(archive)),
            "in flight or lost": sum(not c.is_attribution for c in archive.candidates())
            - len(observations),
            "budget": budget,
        },
        "stopped": dict(Counter(found.stop.reason for found in archive.stops().values())),
        "validated": {"select": finished["select"], "report": finished["report"]},
        "failures": dict(Counter(f"{o.stage}: {o.error_class}" for o in outcomes if not o.scores)),
        "elapsed": format_duration(archive.elapsed_s),
        "elapsed_s": archive.elapsed_s,
        "choice": choice,
        "writer": None if writer is None else writer.pid,
        "writer_host": None if writer is None else writer.host,
    }


def is_finished(archive: "Archive") -> bool:
    """Whether the merge that the search chose was scored on the report items."""
    choice = archive.choice()
    return choice is not None and choice in archive.scores("report")


def archived_verdict(archive: "Archive") -> dict[str, object] | None:
    """Return the verdict as JSON; None before the chosen merge was scored on report items."""
    from optimizer.archive.recorded_space import recorded_space  # noqa: PLC0415 - the verdict
    from optimizer.results.verdict import verdict  # noqa: PLC0415 - the verdict
    from optimizer.results.verdict_view import verdict_record  # noqa: PLC0415 - the verdict

    if not is_finished(archive):
        return None
    found = verdict(archive, recorded_space(archive))
    return None if found is None else verdict_record(found)
