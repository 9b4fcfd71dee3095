"""One recorded merge: what it is made of, its scores, and how it becomes a model."""

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from configs.evaluation import SPLITS, SplitName
from configs.recipe import MergeRecipe
from evaluators.scores import Scores
from mergefront.shown import table_html, table_text
from optimizer.archive.archive import Archive
from optimizer.results.front_view import format_score, gene_table

if TYPE_CHECKING:
    from rich.table import Table

    from evaluators.evaluator import LiveModel
    from optimizer.results.select import Choice


@dataclass(frozen=True, slots=True)
class Merge:
    """A merge that was scored.

    Attributes:
        place: The archive that it is recorded in.
        candidate: Its number there.
        origin: Who proposed it: ``strategy:NAME`` or ``baseline:NAME``.
        rule: How it was chosen, in words.
        recipe: What it is made of.
        scores: Split -> objective -> score with its standard error; what was never used to choose
            is under ``report``.
    """

    place: str
    candidate: int
    origin: str
    rule: str
    recipe: MergeRecipe
    scores: dict[SplitName, Scores] = field(repr=False)

    @classmethod
    def of(cls, archive: Archive, choice: "Choice") -> "Merge":
        """Read a chosen candidate from an open archive."""
        index = choice.candidate.index
        recorded = {split: archive.scores(split).get(index) for split in SPLITS}
        return cls(
            place=str(archive.place),
            candidate=index,
            origin=choice.candidate.origin,
            rule=choice.rule,
            recipe=choice.candidate.recipe,
            scores={split: scores for split, scores in recorded.items() if scores is not None},
        )

    @property
    def recipe_id(self) -> str:
        """Digest that names the recipe, of which the command line takes any unique prefix."""
        return self.recipe.recipe_id

    @property
    def weights(self) -> dict[str, dict[str, dict[str, float]]]:
        """Checkpoint -> group of tensors -> ``weight`` and ``drop_ratio``."""
        return gene_table(self.recipe)

    def __str__(self) -> str:
        return "\n".join([self._title, table_text(self._scores_table()), table_text(self._genes())])

    def _repr_html_(self) -> str:
        return table_html(self._scores_table(), self._title) + table_html(self._genes())

    @property
    def _title(self) -> str:
        return f"Merge {self.recipe_id[:10]} ({self.origin}): {self.rule}"

    def _genes(self) -> "Table":
        from optimizer.report.report import recipe_table

        return recipe_table(self.recipe)

    def _scores_table(self) -> "Table":
        from rich.table import Table

        table = Table("objective", box=None, pad_edge=False)
        for split in self.scores:
            table.add_column(split, justify="right")
        for name in next(iter(self.scores.values()), {}):
            table.add_row(name, *(format_score(scores[name]) for scores in self.scores.values()))
        return table


def materialize(merge: Merge, *, device: str = "cpu") -> "LiveModel":
    """Merge a recorded recipe into a model of transformers, in memory.

    Args:
        merge: From ``Search.choose``.
        device: ``cpu`` or ``cuda``; bits are those that were scored on the same kind of device.

    Returns:
        Its ``model``, in eval mode and without gradients, and the ``tokenizer`` that an export
        would have.

    Raises:
        CheckpointError: A source is gone, or has changed since it was scored.
    """
    from optimizer.publish.export import sources_for, verify_sources
    from workers.job import WorkerSpec, load_live_model
    from workers.materialize import Materializer

    with Archive.open(merge.place) as archive:
        sources, manifest = sources_for(archive, merge.recipe), archive.manifest
        gpus = 1.0 if device == "cuda" else 0.0
        workers = archive.job.workers.model_copy(update={"device": device, "gpus": gpus})
        job = archive.job.model_copy(update={"workers": workers})
    verify_sources(sources)
    spec = WorkerSpec(job=job, sources=sources, manifest=manifest)
    live = load_live_model(spec, merge.recipe.dtype)
    materializer = Materializer(sources)
    try:
        materializer.into(live.model, merge.recipe)
    finally:
        materializer.close()
    return live


def export(merge: Merge, directory: str | Path) -> Path:
    """Write a merge as a Hugging Face checkpoint, with model card and ``recipe.json``.

    Args:
        merge: From ``Search.choose``.
        directory: Must not exist, or be empty; appears whole or not at all.

    Returns:
        The directory.

    Warns:
        UserWarning: It is not clear under which licence the merge is; the card says so too.

    Raises:
        CheckpointError: It cannot be written, or what is written is not what was scored.
    """
    from optimizer.publish.export import export as write_export
    from optimizer.results.select import Choice

    with Archive.open(merge.place) as archive:
        candidate = archive.candidate(merge.candidate)
        choice = Choice(candidate, "report", merge.rule)
        done = write_export(archive, choice, Path(directory))
    if done.licence_warning:
        warnings.warn(done.licence_warning, stacklevel=2)
    return done.directory
