"""The README.md of an exported merge: what it is made of, and how good it was on what."""

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from configs.evaluation import SPLITS, SplitName
from configs.recipe import MergeRecipe
from configs.schema import ModelSource
from evaluators.scores import ObjectiveScore, Scores, TaskScores
from optimizer.archive.schema import mergefront_version
from optimizer.publish.card_metadata import card_metadata
from optimizer.publish.rescore import SPLIT, OtherDtype
from optimizer.publish.source_cards import Licence, SourceCard, licence_of, read_source_card
from optimizer.report.markdown import code_span, escape_markdown
from optimizer.report.report import Report, genes_of, report_of
from optimizer.results.front_view import SHORT_ID, format_score
from optimizer.results.select import Choice
from optimizer.results.verdict_view import format_difference
from optimizer.scalarize import preferred_mean
from optimizer.templates import environment
from workers.architecture import architecture_of
from workers.column_coefficients import EXPORTED_FILE
from workers.fetched import is_url
from workers.methods.delta_guided import DELTA_GUIDED
from workers.sources import hub_id

if TYPE_CHECKING:
    from optimizer.archive.archive import Archive

_TEMPLATE = "model_card.md.j2"


def model_card(
    archive: "Archive",
    choice: Choice,
    *,
    out_name: str,
    other: OtherDtype | None = None,
    weights_digest: str | None = None,
    cards: Sequence[SourceCard],
) -> str:
    """Write the model card of a merge, in Markdown with the hub's metadata on top.

    The same archive and choice give the same text: no date, no machine.

    Args:
        archive: The record of the search.
        choice: What is exported, and why.
        out_name: Name of the directory, for the title and the command.
        other: The same merge in another dtype, where that is what is written.
        weights_digest: Of what was written; None is the recorded one.
        cards: Of the merged models, from :func:`merged_cards`.
    """
    content = _content(archive, choice, out_name)
    if weights_digest is not None:
        content["weights_digest"] = weights_digest
    content["licence"] = licence = licence_of(cards)
    content["metadata"] = _metadata(archive, choice, out_name, other, cards=cards, licence=licence)
    content["other"] = None if other is None else _other_dtype(other, archive.job.preference)
    if other is not None:
        content |= {"recipe": other.recipe, "searched": choice.candidate.recipe}
        # They were scored as searched: what is written here is not compared with them.
        content |= {"baselines": [], "with_differences": False, "verdict": None}
    return render_card(_TEMPLATE, content)


def render_card(template: str, content: Mapping[str, object]) -> str:
    """Fill a Markdown template of this package; a name that it lacks is an error."""
    templates = environment("optimizer.publish")
    templates.filters |= {"md": escape_markdown, "code": code_span, "quoted": shlex.quote}
    return templates.get_template(template).render(content)


def _content(archive: "Archive", choice: Choice, out_name: str) -> dict[str, object]:
    candidate, job = choice.candidate, archive.job
    recipe = candidate.recipe
    report = report_of(archive)
    splits = {
        split: scores[candidate.index]
        for split in SPLITS
        if candidate.index in (scores := archive.scores(split))
    }
    is_choice = archive.choice() == candidate.index
    has_drops = any(drop for row in recipe.drop_ratios for drop in row)
    return {
        "title": out_name,
        "search": job.name,
        "recipe": recipe,
        "short_id": recipe.recipe_id[:SHORT_ID],
        "origin": candidate.origin,
        "rule": choice.rule,
        "sources": _sources(archive),
        "genes": [
            (checkpoint, group, f"{weight:.6g}", f"{drop:.6g}")
            for checkpoint, group, weight, drop in genes_of(recipe)
        ],
        "has_drops": has_drops,
        "formula": _formula(recipe, has_drops),
        "coefficients_file": EXPORTED_FILE,
        "objectives": {
            name: ", ".join(
                spec.task + (f" ({spec.metric})" if spec.metric else "") for spec in objective.tasks
            )
            for name, objective in job.objectives.items()
        },
        "preference": ", ".join(f"{name} {weight:.3g}" for name, weight in job.preference.items()),
        "score_rows": _score_rows(splits, report),
        "scored_splits": list(splits),
        "baselines": _baseline_rows(report, with_differences=is_choice),
        "with_differences": is_choice and report.verdict is not None,
        "verdict": report.verdict.sentence if is_choice and report.verdict else None,
        "num_evaluations": report.num_outcomes,
        "num_failed": sum(report.failures.values()),
        "weights_digest": archive.weights_digest(candidate.index),
        "archive_name": archive.place.public_name,
        "job_name": "JOB.yaml" if archive.job_path is None else archive.job_path.name,
        "job_digest": job.digest,
        "version": mergefront_version(),
    }


def _other_dtype(other: OtherDtype, preference: Mapping[str, float]) -> dict[str, object]:
    """Say how another dtype scored beside the one that was searched; no rows where it was not."""
    if (found := other.rescored) is None:
        return {"rows": []}
    rows = [
        [name, _score_text(score), _score_text(found.recorded[name]), format_difference(gap)]
        for (name, score), gap in zip(found.scores.items(), found.differences.values(), strict=True)
    ]
    means = [f"{preferred_mean(s, preference):.3f}" for s in (found.scores, found.recorded)]
    rows.append(["**mean**", *means, format_difference(found.mean_difference)])
    return {"rows": rows, "split": SPLIT}


def _formula(recipe: MergeRecipe, has_drops: bool) -> str:
    if recipe.coefficients is not None:
        return "sum_i w_i * tuned_i * diag(c_i)"
    if recipe.method == DELTA_GUIDED.name:
        share = "|tuned_i - base|^k / sum_j |tuned_j - base|^k"
        return f"base + scale * sum_i w_i * a_i * (tuned_i - base), a_i = {share}"
    if recipe.base is None:
        return "sum_i w_i * tuned_i"
    delta = "DARE_p_i(tuned_i - base)" if has_drops else "(tuned_i - base)"
    return f"base + sum_i w_i * {delta}"


def _model_sources(archive: "Archive") -> dict[str, ModelSource]:
    models = archive.job.models
    named = {} if models.base is None else {"base": models.base}
    return {**named, **models.checkpoints}


def merged_cards(archive: "Archive", recipe: MergeRecipe) -> list[SourceCard]:
    """Return the cards of the base and of every checkpoint that has a weight in a merge."""
    directories = {source.name: source.directory for source in archive.sources.everything}
    return [
        read_source_card(name, (_own_directory(archive, source), directories[name]))
        for name, source in _merged_sources(archive, recipe).items()
    ]


def _own_directory(archive: "Archive", source: ModelSource) -> Path:
    """Where a model's card is if the job names a directory: an adapter is merged elsewhere."""
    return archive.working_directory / Path(source.path).expanduser()


def _merged_sources(archive: "Archive", recipe: MergeRecipe) -> dict[str, ModelSource]:
    weights = {
        checkpoint.name: any(row)
        for checkpoint, row in zip(recipe.checkpoints, recipe.weights, strict=True)
    }
    return {
        name: source for name, source in _model_sources(archive).items() if weights.get(name, True)
    }


def _metadata(
    archive: "Archive",
    choice: Choice,
    title: str,
    other: OtherDtype | None,
    *,
    cards: Sequence[SourceCard],
    licence: Licence,
) -> str:
    """Return the front matter; it has results only of the very tensors that are written."""
    index, recipe = choice.candidate.index, choice.candidate.recipe
    results: Mapping[str, TaskScores] | None = None
    if other is not None:
        results = None if other.rescored is None else other.rescored.task_scores
    elif index in archive.scores(SPLIT):
        results = archive.task_scores(index, SPLIT)
    parents = _merged_sources(archive, recipe).values()
    return card_metadata(
        model_name=title,
        parents=hub_ids(parents),
        cards=cards,
        licence=licence,
        is_causal=reference_is_causal(archive.sources.reference.directory),
        job=archive.job,
        results=results,
    )


def hub_ids(sources: Iterable[ModelSource]) -> list[str]:
    """Return the ids of the models that the hub knows, each once: what `base_model` may hold."""
    return list(dict.fromkeys(found for source in sources if (found := hub_id(source))))


def reference_is_causal(directory: Path) -> bool:
    """Say whether a model continues texts, by its config; False where that cannot be read."""
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return (architecture_of(config) or "").endswith(("ForCausalLM", "LMHeadModel"))


def _sources(archive: "Archive") -> list[tuple[str, str, str]]:
    """List (name, where it came from, digest); of a local directory only its name is told."""
    rows = []
    digests = {source.name: source.digest for source in archive.sources.everything}
    for name, source in _model_sources(archive).items():
        rows.append((name, origin_of(source), digests[name]))
    return rows


def origin_of(source: ModelSource) -> str:
    """Return where a model is from, in Markdown; of a directory only its name is told."""
    if is_url(source.path):
        return code_span(source.path)
    if hub_id(source) is None:
        return f"directory {code_span(Path(source.path).name)}"
    at = f" at {code_span(source.revision)}" if source.revision else ""
    return code_span(source.path) + at


def _score_rows(splits: Mapping[SplitName, Scores], report: Report) -> list[list[str]]:
    rows = [
        [name, *(_score_text(scores[name]) for scores in splits.values())]
        for name in report.objectives
    ]
    means = [f"{preferred_mean(scores, report.preference):.3f}" for scores in splits.values()]
    return [*rows, ["**mean**", *means]]


def _score_text(score: ObjectiveScore) -> str:
    return f"{format_score(score)} ({score.count})"


def _baseline_rows(report: Report, *, with_differences: bool) -> list[list[str]]:
    rows = []
    for label, scores in report.baselines.items():
        values = [format_score(scores[name], with_error=False) for name in report.objectives]
        row = [label, *values, f"{preferred_mean(scores, report.preference):.3f}"]
        if with_differences and report.verdict is not None:
            gap = report.verdict.comparisons.get(label)
            row.append(format_difference(None if gap is None else gap.mean))
        rows.append(row)
    return rows
