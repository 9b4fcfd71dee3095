"""A recorded search: its candidates as tables, its front, its report, and the choice from it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from configs.evaluation import SplitName
from configs.schema import JobConfig
from mergefront.merge import Merge
from mergefront.shown import table_html, table_text
from optimizer.archive.archive import Archive
from optimizer.archive.store import AnyPlace
from optimizer.results.front_view import (
    ScoredCandidate,
    front_of,
    front_table,
    rows_table,
    scored_candidates,
)

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from optimizer.report.document import Document
    from optimizer.report.report import Report as GatheredReport


@dataclass(frozen=True, slots=True)
class Front:
    """The merges that no other merge dominates, what is wanted most first; a table in notebooks.

    Attributes:
        rows: Candidates with their scores and what is believed of them.
        objectives: Names of the columns.
    """

    rows: tuple[ScoredCandidate, ...]
    objectives: tuple[str, ...]

    def to_frame(self) -> "pd.DataFrame":
        """Return it as pandas has it, one row per merge and one column per number."""
        return _frame(self.rows, self.objectives)

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        return table_text(front_table(self.rows, self.objectives))

    def _repr_html_(self) -> str:
        caption = f"{len(self.rows)} merges on the front (* chosen)"
        return table_html(front_table(self.rows, self.objectives), caption)


@dataclass(frozen=True, slots=True)
class Report:
    """The report of a search; a page in notebooks.

    ``gathered`` has its numbers: the verdict, the choice, baselines, failures.
    """

    gathered: "GatheredReport"
    document: "Document"

    def write(
        self,
        *,
        html: str | Path | None = None,
        markdown: str | Path | None = None,
        png: str | Path | None = None,
    ) -> list[Path]:
        """Write it as a page, as Markdown, and its figures into a directory; returns the files."""
        from optimizer.report.write import check_targets, write_report

        places = [None if place is None else Path(place) for place in (html, markdown, png)]
        check_targets(*places)
        return write_report(self.document, html=places[0], markdown=places[1], png=places[2])

    def __str__(self) -> str:
        from optimizer.report.report import render

        return table_text(render(self.gathered))

    def _repr_html_(self) -> str:
        from html import escape

        from optimizer.report.write import html_of

        # A page of its own: its styles stay in it.
        page = escape(html_of(self.document))
        return f'<iframe srcdoc="{page}" style="width: 100%; height: 40rem; border: 0"></iframe>'


class Search:
    """What an archive holds. Every call reads what is recorded by then, and holds no lock.

    Args:
        place: The archive: a file, or ``postgresql://USER@HOST/DB?search=NAME``.

    Attributes:
        job: What is searched.
    """

    def __init__(self, place: AnyPlace) -> None:
        with Archive.open(place) as archive:
            self.job: JobConfig = archive.job
            self.place = str(archive.place)

    def candidates(self, split: SplitName = "search") -> "pd.DataFrame":
        """Return every merge that was scored on a split, one row each.

        Columns: ``candidate``, ``recipe_id``, ``origin``; of every objective its score,
        ``.stderr``, ``.count`` and (on ``search``) ``.posterior``; the preferred ``mean``;
        ``effective_checkpoints``, ``is_chosen``; ``CHECKPOINT/GROUP.weight`` and ``.drop_ratio``.
        """
        with Archive.open(self.place) as archive:
            return _frame(self._rows(archive, split), tuple(self.job.objectives))

    def items(self, candidate: int, split: SplitName = "report") -> "pd.DataFrame":
        """Return the scores of a candidate item by item: ``task``, ``item``, ``score``, ``weight``.

        Items come in the same order for every candidate, so that two of them can be subtracted.
        """
        import pandas as pd

        with Archive.open(self.place) as archive:
            found = archive.scored_items(candidate, split)
        parts = [
            pd.DataFrame(
                {
                    "task": task,
                    "item": list(scores.item_ids),
                    "score": scores.values,
                    "weight": 1.0 if scores.weights is None else scores.weights,
                }
            )
            for task, scores in found.items()
        ]
        columns = ["task", "item", "score", "weight"]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)

    def progress(self) -> "pd.DataFrame":
        """Return the course: ``hypervolume`` over ``evaluations``, ``items`` and ``model_s``."""
        import pandas as pd

        from optimizer.progress import progress_of

        with Archive.open(self.place) as archive:
            points = progress_of(archive)
        return pd.DataFrame(
            [(p.candidate, p.evaluations, p.items, p.model_s, p.volume) for p in points],
            columns=["candidate", "evaluations", "items", "model_s", "hypervolume"],
        )

    def front(self, split: SplitName = "search") -> Front:
        """Return the front: on ``search`` of what is believed of merges, else of raw scores."""
        with Archive.open(self.place) as archive:
            rows = front_of(self._rows(archive, split))
        return Front(tuple(rows), tuple(self.job.objectives))

    def choose(
        self,
        *,
        prefer: Mapping[str, float] | None = None,
        at_least: Mapping[str, float] | None = None,
        knee: bool = False,
        recipe_id: str | None = None,
    ) -> Merge:
        """Choose one merge by what is believed of all; without a wish, the search's own choice.

        Args:
            prefer: Objective -> relative weight of the mean that is maximized.
            at_least: Objective -> smallest acceptable score.
            knee: Take the knee of the front of what meets the floors; excludes ``prefer``.
            recipe_id: Prefix of the id of a recipe; excludes the others.

        Raises:
            ConfigError: Unknown objective, floors that nothing meets, an id of no recipe.
            ArchiveError: Nothing was scored yet.
        """
        from optimizer.results.select import choose

        with Archive.open(self.place) as archive:
            choice = choose(archive, prefer=prefer, floors=at_least, knee=knee, recipe_id=recipe_id)
            return Merge.of(archive, choice)

    def report(self) -> Report:
        """Return the report: verdict, front, contributions, cost, how to reproduce."""
        from optimizer.report.report import report_of
        from optimizer.report.sections import document_of

        with Archive.open(self.place) as archive:
            gathered = report_of(archive)
            return Report(gathered, document_of(archive, gathered))

    def plot(self) -> "go.Figure":
        """Return the front in every pair of objectives; hovering shows recipes.

        Raises:
            ArchiveError: Nothing was scored yet.
        """
        from optimizer.report.plot import Picture
        from optimizer.report.plot_html import pairs_figure

        with Archive.open(self.place) as archive:
            return pairs_figure(Picture.of(archive))

    def __repr__(self) -> str:
        return f"Search({self.place!r})"

    def _repr_html_(self) -> str:
        return self.front()._repr_html_()

    @staticmethod
    def _rows(archive: Archive, split: SplitName) -> list[ScoredCandidate]:
        from optimizer.results.belief import believed_candidates

        if split == "search":
            return believed_candidates(archive)
        return scored_candidates(archive, split)


def open_archive(place: AnyPlace) -> Search:
    """Open a recorded search, finished or not.

    Raises:
        ArchiveNotFoundError: There is none.
        ArchiveError: It is no archive, or damaged.
    """
    return Search(place)


def _frame(
    rows: "list[ScoredCandidate] | tuple[ScoredCandidate, ...]", objectives: tuple[str, ...]
) -> "pd.DataFrame":
    import pandas as pd

    header, lines = rows_table(rows, objectives)
    return pd.DataFrame(lines, columns=header).astype({"is_chosen": bool})
