"""What ``mergefront check`` prints: the pool, the suites, the cost, and what looks odd."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from configs.evaluation import SPLITS
from optimizer.dispatch_plan import describe_plan, planned
from optimizer.preflight.estimate import Estimate, format_bytes, format_count
from optimizer.preflight.pool_view import (
    cosine_heading,
    cosine_table,
    deltas_table,
    files_table,
    groups_table,
    headers_only_text,
    pool_record,
    sources_table,
    tier_text,
    tiers_table,
)
from optimizer.preflight.preflight import Prepared
from optimizer.results.tables import plain_table


def render_prepared(prepared: Prepared) -> RenderableType:
    """Lay out a checked job for a terminal."""
    job, pool, plan = prepared.job, prepared.pool, prepared.estimate.tiers
    parts: list[RenderableType] = [
        Text(f"{job.name}: every check passed that needs no evaluation", style="bold green"),
        _heading("Checkpoints"),
        sources_table(prepared.sources),
        Text(),
        files_table(pool),
    ]
    if pool.headers_only:
        parts.append(Text(headers_only_text(pool), style="yellow"))
    if pool.deltas:
        sampled = ", from samples" if any(stats.is_sampled for stats in pool.deltas) else ""
        parts += [_heading(f"Task vectors{sampled}"), deltas_table(pool.deltas)]
    if pool.similarity is not None and len(pool.similarity.names) > 1:
        parts += [_heading(cosine_heading(pool.similarity)), cosine_table(pool.similarity)]
    parts += [_heading("Groups"), groups_table(pool)]
    parts += [_heading("Suites"), _tasks_table(prepared)]
    parts += [_heading("Cost"), _cost_table(prepared)]
    parts += [_heading("Where checkpoints are read from"), tiers_table(plan), Text(tier_text(plan))]
    if prepared.warnings:
        parts.append(_heading("Warnings"))
        parts += [Text(f"- {warning}", style="yellow") for warning in prepared.warnings]
    return Group(*parts)


def _heading(text: str) -> Text:
    return Text(f"\n{text}", style="bold")


def _tasks_table(prepared: Prepared) -> Table:
    numbers = ("items", *SPLITS, "max tokens")
    table = plain_table("objective", "task", "metric", "kind", *numbers, right=numbers)
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
            f"{cost.evaluations['search']} search (of them up to {_baselines(cost)}), "
            f"{cost.evaluations['select']} select, up to {cost.evaluations['report']} report"
            + (f" ({cost.num_variants} to leave out one by one)" if cost.num_variants else ""),
        ),
        ("spared", "; ".join(_spared(prepared))),
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
    if prepared.baselines:
        given = (f"{each.label} ({each.recipe.method})" for each in prepared.baselines)
        rows.insert(5, ("of them the job's", "; ".join(given)))
    for name, text in rows:
        table.add_row(Text(name, style="bold"), Text(text))
    return table


def _baselines(cost: Estimate) -> str:
    """Say how many evaluations baselines take, which is fewer where they are sampled."""
    if cost.baseline_evaluations == cost.num_baselines:
        return f"{cost.num_baselines} baselines"
    return f"{cost.baseline_evaluations} for {cost.num_baselines} baselines"


def _spared(prepared: Prepared) -> list[str]:
    """Say what is not scored of candidates that are not worth it."""
    job = prepared.job
    plan = planned(job, prepared.manifest.items("search"))
    return describe_plan(plan, by_gate=job.search.gates.likelihood is not None)


def prepared_record(prepared: Prepared) -> dict[str, object]:
    """Return a checked job as JSON."""
    pool, cost = prepared.pool, prepared.estimate
    return {
        "name": prepared.job.name,
        "job_digest": prepared.job.digest,
        "archive": prepared.job.archive,
        **pool_record(prepared.sources, pool, cost.tiers),
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
            "baseline_evaluations": cost.baseline_evaluations,
            "evaluations": cost.evaluations,
            "requests_per_candidate": cost.requests,
            "generations_per_candidate": cost.generations,
            "new_tokens_per_candidate": cost.new_tokens,
        },
        "given_baselines": [
            {
                "label": each.label,
                "method": each.recipe.method,
                "recipe_id": each.recipe.recipe_id,
            }
            for each in prepared.baselines
        ],
        "spared": _spared(prepared),
        "warnings": list(prepared.warnings),
    }
