"""What ``mergefront check`` prints: the pool, the suites, the cost, and what looks odd."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from configs.schema import SPLITS
from optimizer.estimate import format_bytes, format_count
from optimizer.preflight import Prepared


def render_prepared(prepared: Prepared) -> RenderableType:
    """Lay out a checked job for a terminal."""
    job = prepared.job
    parts: list[RenderableType] = [
        Text(f"{job.name}: every check passed that needs no evaluation", style="bold green"),
        _heading("Checkpoints"),
        _sources_table(prepared),
        _heading("Suites"),
        _tasks_table(prepared),
        _heading("Cost"),
        _cost_table(prepared),
    ]
    if prepared.warnings:
        parts.append(_heading("Warnings"))
        parts += [Text(f"- {warning}", style="yellow") for warning in prepared.warnings]
    return Group(*parts)


def _heading(text: str) -> Text:
    return Text(f"\n{text}", style="bold")


def _table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    table = Table(header_style="bold", pad_edge=False, box=None)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left")
    return table


def _sources_table(prepared: Prepared) -> Table:
    numbers = ("median |delta|", "p99", "max", "unchanged")
    table = _table("name", "directory", "digest", *numbers, right=numbers)
    deltas = {stats.checkpoint: stats for stats in prepared.pool.deltas}
    for source in prepared.sources.everything:
        stats = deltas.get(source.name)
        sizes = ("", "", "", "")
        if stats is not None:
            sizes = (
                f"{stats.median:.2g}",
                f"{stats.p99:.2g}",
                f"{stats.maximum:.2g}",
                f"{100 * stats.unchanged:.0f} %",
            )
        table.add_row(source.name, Text(str(source.directory)), source.digest[:12], *sizes)
    return table


def _tasks_table(prepared: Prepared) -> Table:
    numbers = ("items", *SPLITS, "max tokens")
    table = _table("objective", "task", "metric", "kind", *numbers, right=numbers)
    for task in prepared.tasks:
        taken = [str(len(prepared.manifest.items(split)[task.task])) for split in SPLITS]
        tokens = str(task.max_new_tokens) if task.max_new_tokens else ""
        direction = "" if task.higher_is_better else " (negated)"
        table.add_row(
            task.objective,
            # Names of others: what looks like markup is none.
            Text(task.task),
            Text(task.metric + direction),
            task.output_type,
            str(task.num_items),
            *taken,
            tokens,
        )
    return table


def _cost_table(prepared: Prepared) -> Table:
    job, pool, cost = prepared.job, prepared.pool, prepared.estimate
    table = Table(box=None, show_header=False, pad_edge=False)
    rows = [
        ("parameters", f"{format_count(pool.num_parameters)} in {pool.num_tensors} tensors"),
        ("genes", f"{cost.num_genes}, by `{job.search.strategy}`"),
        ("one merged model", f"{format_bytes(cost.model_bytes)} in {pool.dtype}"),
        (
            "moved per candidate",
            f"{format_bytes(cost.moved_bytes)}: {format_bytes(pool.bytes_read)} of checkpoints "
            f"read once, {format_bytes(pool.bytes_written)} written once",
        ),
        (
            "evaluations",
            f"{cost.evaluations['search']} search (of them up to {cost.num_baselines} baselines), "
            f"{cost.evaluations['select']} select, up to {cost.evaluations['report']} report",
        ),
        (
            "per candidate",
            f"{cost.requests['search']} requests, {cost.generations['search']} of them generate "
            f"up to {format_count(cost.new_tokens['search'])} tokens",
        ),
        (
            "in all",
            f"{format_count(cost.total_generations)} generations, "
            f"{format_bytes(cost.total_moved_bytes)} moved by merging",
        ),
        (
            "workers",
            f"{job.workers.count} on {job.workers.device}, {format_bytes(cost.worker_bytes)} each "
            "and what forward passes take",
        ),
        ("an export", f"{format_bytes(cost.model_bytes)} of disk"),
        ("archive", job.archive),
    ]
    for name, text in rows:
        table.add_row(Text(name, style="bold"), Text(text))
    return table


def prepared_record(prepared: Prepared) -> dict[str, object]:
    """Return a checked job as JSON."""
    pool, cost = prepared.pool, prepared.estimate
    return {
        "name": prepared.job.name,
        "job_digest": prepared.job.digest,
        "archive": prepared.job.archive,
        "sources": [
            {"name": source.name, "directory": str(source.directory), "digest": source.digest}
            for source in prepared.sources.everything
        ],
        "deltas": {
            stats.checkpoint: {
                "median": stats.median,
                "p99": stats.p99,
                "max": stats.maximum,
                "relative": stats.relative,
                "unchanged": stats.unchanged,
            }
            for stats in pool.deltas
        },
        "tasks": [
            {
                "objective": task.objective,
                "task": task.task,
                "metric": task.metric,
                "output_type": task.output_type,
                "num_items": task.num_items,
                "max_new_tokens": task.max_new_tokens,
            }
            for task in prepared.tasks
        ],
        "estimate": {
            "parameters": pool.num_parameters,
            "dtype": pool.dtype,
            "genes": cost.num_genes,
            "model_bytes": cost.model_bytes,
            "bytes_read_per_candidate": pool.bytes_read,
            "bytes_moved_per_candidate": cost.moved_bytes,
            "worker_bytes": cost.worker_bytes,
            "baselines": cost.num_baselines,
            "evaluations": cost.evaluations,
            "requests_per_candidate": cost.requests,
            "generations_per_candidate": cost.generations,
            "new_tokens_per_candidate": cost.new_tokens,
        },
        "warnings": list(prepared.warnings),
    }
