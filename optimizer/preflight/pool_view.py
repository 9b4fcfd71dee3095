"""The part of ``mergefront check`` that is about the pool: as tables, and as JSON."""

import math
from dataclasses import asdict
from typing import Any

from rich.table import Table
from rich.text import Text

from optimizer.preflight.estimate import digest_seconds, format_bytes, format_count, format_seconds
from optimizer.results.tables import plain_table
from workers.compat import PoolReport, SourceFacts
from workers.delta_stats import DeltaStats
from workers.similarity import Similarity
from workers.sources import Sources
from workers.tiers import TierPlan

# Cosines from here on stand out in the table.
_ALIKE_AT = 0.9


def sources_table(sources: Sources) -> Table:
    """Say where every model is, and what names its tensors."""
    table = plain_table("name", "digest", "directory")
    for source in sources.everything:
        table.add_row(source.name, source.digest[:12] or "-", Text(str(source.directory)))
    return table


def files_table(pool: PoolReport) -> Table:
    """Say what the files of every model hold, and whether it is what the first model has."""
    table = plain_table("name", "size", "dtype", "tokenizer", "chat template", right=("size",))
    for facts in pool.sources:
        table.add_row(
            facts.name,
            format_bytes(facts.size_bytes),
            _dtypes_of(facts),
            _sameness(facts.tokenizer),
            _sameness(facts.chat_template),
        )
    return table


def _dtypes_of(facts: SourceFacts) -> str:
    shares = [
        (dtype, count / max(facts.num_parameters, 1)) for dtype, count in facts.dtypes.items()
    ]
    if len(shares) == 1:
        return shares[0][0]
    return ", ".join(f"{dtype} {_percent(share)}" for dtype, share in shares)


def _sameness(value: str) -> Text:
    style = {"other": "yellow", "unknown": "yellow"}.get(value, "")
    return Text(value, style=style)


def deltas_table(deltas: tuple[DeltaStats, ...]) -> Table:
    """Say how large every task vector is."""
    numbers = ("median |delta|", "p99", "max", "to weights", "unchanged", "same tensors")
    table = plain_table("name", *numbers, right=numbers)
    for stats in deltas:
        table.add_row(
            stats.checkpoint,
            f"{stats.median:.2g}",
            f"{stats.p99:.2g}",
            f"{stats.maximum:.2g}",
            f"{stats.relative:.2g}",
            _percent(stats.unchanged),
            _percent(stats.identical_tensors),
        )
    return table


def cosine_table(similarity: Similarity) -> Table:
    """Lay the cosines out as a triangle, in hundredths: narrow enough for many checkpoints."""
    count = len(similarity.names)
    columns = [str(number) for number in range(1, count)]
    table = Table(header_style="bold", pad_edge=False, box=None, padding=(0, 1, 0, 0))
    table.add_column("")
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for row, name in enumerate(similarity.names):
        cells = [_hundredths(similarity.cosines[row][column]) for column in range(row)]
        table.add_row(str(row + 1), Text(name, overflow="ellipsis"), *cells)
    return table


def cosine_heading(similarity: Similarity) -> str:
    """Say what the cosines are of."""
    what = "task vectors" if similarity.of_task_vectors else "weights"
    sampled = ", from samples" if similarity.is_sampled else ""
    return f"Cosine of {what} x 100{sampled}"


def _hundredths(cosine: float) -> Text:
    if math.isnan(cosine):
        return Text("-")
    # Rounded down: 100 is said of what is parallel only.
    text = f"{math.floor(100 * cosine + 1e-6) if cosine > _ALIKE_AT else round(100 * cosine)}"
    return Text(text, style="bold yellow" if cosine >= _ALIKE_AT else "")


def groups_table(pool: PoolReport) -> Table:
    """Say what every group holds."""
    numbers = ("tensors", "parameters", "share")
    table = plain_table("group", *numbers, right=numbers)
    for group in pool.groups:
        table.add_row(
            group.name,
            str(group.num_tensors),
            format_count(group.num_parameters),
            _percent(group.share),
        )
    return table


def tiers_table(plan: TierPlan) -> Table:
    """Say what one candidate takes from every tier; the arrow marks the one that is used."""
    numbers = ("needs", "free here", "read at", "one candidate")
    table = plain_table("", "from", *numbers, right=numbers)
    names = {"gpu": "GPU memory", "host": "host memory (page cache)", "disk": "disk"}
    for cost in plan.costs:
        room = "unknown" if cost.available_bytes is None else format_bytes(cost.available_bytes)
        on_disk = cost.tier == "disk"
        table.add_row(
            "->" if cost.tier == plan.tier else "",
            names[cost.tier],
            "" if on_disk else format_bytes(cost.needed_bytes),
            "" if on_disk else room,
            f"{cost.read_gb_per_s:.3g} GB/s {'measured' if cost.is_measured else 'assumed'}",
            format_seconds(cost.seconds),
        )
    return table


def tier_text(plan: TierPlan) -> str:
    """Say in a sentence how much one candidate moves, and from where."""
    amount = (
        f"one candidate reads {format_bytes(plan.bytes_read)} and writes "
        f"{format_bytes(plan.bytes_written)}"
    )
    if plan.chosen is None:
        return f"{amount}; from where depends on the room that the workers find"
    where = {"gpu": "GPU memory", "host": "host memory", "disk": "disk"}[plan.chosen.tier]
    return f"{amount}: from {where}, in about {format_seconds(plan.chosen.seconds)}"


def headers_only_text(pool: PoolReport) -> str:
    """Say what was left out, and what it will cost."""
    text = "headers only: digests, deltas, cosines and the search for NaN were left out."
    if not pool.undigested_bytes:
        return f"{text} The digests are known from before"
    return (
        f"{text} Before a search, {format_bytes(pool.undigested_bytes)} are read once for digests, "
        f"about {format_seconds(digest_seconds(pool.undigested_bytes))} from disk"
    )


def _percent(share: float) -> str:
    """Write a share; 0 % and 100 % are said of none and of all only."""
    if 0 < share < 0.005 or 0.995 <= share < 1:
        return "< 1 %" if share < 0.5 else "> 99 %"
    return f"{100 * share:.0f} %"


def pool_record(sources: Sources, pool: PoolReport, plan: TierPlan) -> dict[str, Any]:
    """Return what the tables say, and more, as JSON."""
    facts = {facts.name: facts for facts in pool.sources}
    similarity = pool.similarity
    return {
        "sources": [
            {
                **asdict(facts[source.name]),
                "directory": str(source.directory),
                "digest": source.digest or None,
            }
            for source in sources.everything
        ],
        "headers_only": pool.headers_only,
        "undigested_bytes": pool.undigested_bytes,
        "deltas": {
            stats.checkpoint: {
                "median": stats.median,
                "p99": stats.p99,
                "max": stats.maximum,
                "relative": stats.relative,
                "unchanged": stats.unchanged,
                "identical_tensors": stats.identical_tensors,
                "is_sampled": stats.is_sampled,
            }
            for stats in pool.deltas
        },
        "similarity": None
        if similarity is None
        else {
            "of": "task vectors" if similarity.of_task_vectors else "weights",
            "names": similarity.names,
            "cosines": [
                [None if math.isnan(value) else value for value in row]
                for row in similarity.cosines
            ],
            "is_sampled": similarity.is_sampled,
        },
        "groups": [asdict(group) for group in pool.groups],
        "tiers": {
            "policy": plan.policy,
            "tier": plan.tier,
            "bytes_read": plan.bytes_read,
            "bytes_written": plan.bytes_written,
            "costs": [{**asdict(cost), "fits": cost.fits} for cost in plan.costs],
        },
    }
