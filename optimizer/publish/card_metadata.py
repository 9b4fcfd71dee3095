"""The metadata on top of a model card, as the Hugging Face hub reads it.

Its schema is that of ``huggingface_hub.ModelCardData``, which writes it: parents with the relation
``merge``, tags, licence, data sets, and results in the form of a model-index.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from configs.evaluation import SplitName
from configs.schema import JobConfig
from configs.scorers import ScorerSpec
from evaluators.scores import TaskScores, standard_error
from optimizer.publish.source_cards import Licence, SourceCard, datasets_of

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

TAGS = ("merge", "mergefront")
SPLIT: SplitName = "report"
"""Whose scores a card publishes: nothing was chosen on them."""

_TEXT = "text-generation"


def card_metadata(
    *,
    model_name: str,
    parents: Sequence[str],
    cards: Sequence[SourceCard],
    licence: Licence,
    is_causal: bool,
    job: JobConfig | None = None,
    results: Mapping[str, TaskScores] | None = None,
) -> str:
    """Return the metadata as YAML, without the lines of dashes around it.

    Args:
        model_name: Of the merge, for its results.
        parents: Hub ids of the merged models and their base; may be empty.
        cards: What the cards of the merged models say.
        licence: What follows from them (``licence_of``).
        is_causal: Whether the merge continues texts.
        job: Says how tasks were scored; needed with ``results``.
        results: Task -> its scores on the report split.
    """
    from huggingface_hub import ModelCardData

    pipeline = _TEXT if is_causal else next((c.pipeline_tag for c in cards if c.pipeline_tag), None)
    data = ModelCardData(
        base_model=list(parents) or None,
        base_model_relation="merge" if parents else None,
        library_name="transformers",
        pipeline_tag=pipeline,
        tags=list(TAGS),
        datasets=datasets_of(cards) or None,
        license=licence.fields.get("license"),
        license_name=licence.fields.get("license_name"),
        license_link=licence.fields.get("license_link"),
        model_name=model_name if results else None,
        eval_results=_results(job, results, pipeline or "other") if job and results else None,
    )
    return data.to_yaml().rstrip("\n")


def _results(
    job: JobConfig, results: Mapping[str, TaskScores], task_type: str
) -> "list[EvalResult]":
    from huggingface_hub import EvalResult

    specs = [spec for objective in job.objectives.values() for spec in objective.tasks]
    found = []
    for spec in specs:
        scores = results[spec.task]
        count, error = len(scores.item_ids), standard_error(scores.values, scores.weights)
        metric = (spec.metric or "score").partition(",")[0]
        arguments: dict[str, float | int | str] = {"items": count, "stderr": round(error, 6)}
        if spec.metric and "," in spec.metric:
            arguments["filter"] = spec.metric.partition(",")[2]
        if (shots := getattr(spec, "num_fewshot", None)) is not None:
            arguments["num_fewshot"] = shots
        # A scorer's number is published as it is. Of a metric of lm-eval, only one inside of what
        # shares and accuracies can be is surely the metric itself: others may have been turned.
        plain = isinstance(spec, ScorerSpec) or (
            float(scores.values.min()) >= 0.0 and float(scores.values.max()) <= 1.0
        )
        name = f"{metric}, mean of {count} held-out items"
        found.append(
            EvalResult(
                task_type=task_type,
                task_name=spec.task,
                dataset_type=spec.task,
                dataset_name=f"{spec.task}: {count} items that mergefront held out",
                dataset_split=SPLIT,
                # A leaderboard must not take a score that was turned for the metric itself.
                metric_type=metric if plain else f"mergefront_{metric}",
                metric_name=name if plain else f"{name}, as mergefront scores it: higher is better",
                metric_value=round(scores.mean, 6),
                metric_args=arguments,
            )
        )
    return found
