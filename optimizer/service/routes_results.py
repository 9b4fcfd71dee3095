"""Routes that say what a search has found: front, candidates, charts, comparisons."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query

from configs.errors import ConfigError
from configs.evaluation import SplitName
from optimizer.archive.archive import Archive
from optimizer.results.belief import chance_of
from optimizer.results.front_choice import FrontWish, numbers, wished_front
from optimizer.results.front_view import ScoredCandidate, gene_table
from optimizer.service.beliefs import Believed
from optimizer.service.candidates import (
    candidate_at,
    candidate_detail,
    candidate_table,
    items_of,
    points_of,
    scores_of,
)
from optimizer.service.comparison import ItemsWish, Which, compare_candidates
from optimizer.service.errors import BadRequestError
from optimizer.service.result_models import (
    CandidateDetail,
    CandidatePage,
    CandidateRow,
    CandidateState,
    CompareAnswer,
    FrontAnswer,
    FrontRow,
    ItemsAnswer,
    Points,
)
from optimizer.service.searches import OpenArchive, revision_of
from optimizer.service.services import Index, Parts, Services, TheSearch, errors

router = APIRouter(tags=["results"])

Fresh = Annotated[
    bool, Query(description="Wait for the posterior of all that is recorded (seconds).")
]
Raw = Annotated[bool, Query(description="Go by raw scores, not by the posterior.")]
Wish = Annotated[
    list[str] | None,
    Query(description="`NAME=NUMBER`, one for each objective.", max_length=20),
]


@router.get("/searches/{search}/front", responses=errors(404, 409, 422))
def show_front(
    *,
    parts: Parts,
    files: TheSearch,
    split: SplitName = "search",
    prefer: Wish = None,
    floor: Wish = None,
    knee: bool = False,
    raw: Raw = False,
    fresh: Fresh = False,
) -> FrontAnswer:
    """Return the merges that none dominates; with a wish, what is wanted most comes first.

    ``prefer`` weighs the objectives, ``floor`` is the smallest acceptable score of one, ``knee``
    takes the knee.
    """
    wish = FrontWish(_numbers("prefer", prefer), _numbers("floor", floor), knee=knee, raw=raw)
    if not wish.is_plain and (raw or split != "search"):
        raise BadRequestError("wishes go by the posterior; leave `raw` and `split` out")
    with parts.searches.reading(files) as opened:
        archive = opened.archive
        is_believed = split == "search" and not raw
        believed = _believed(parts, opened, raw=not is_believed, fresh=fresh)
        front, rule = wished_front(archive, split, wish, believed.rows if is_believed else None)
        table = candidate_table(opened, believed)
        is_select = not wish.is_plain and front and all(row.posterior is None for row in front)
        if is_select and archive.scores("select"):
            # As `optimizer.results.select` has it where there is no posterior to go by.
            split = "select"
        return FrontAnswer(
            split=split,
            objectives=list(archive.job.objectives),
            preference=archive.job.preference,
            rule=rule,
            belief=believed.belief,
            revision=revision_of(believed.now),
            front=[_front_row(row, table, wish) for row in front],
        )


@router.get("/searches/{search}/candidates", responses=errors(404, 409, 422))
def list_candidates(
    *,
    parts: Parts,
    files: TheSearch,
    state: CandidateState | None = None,
    kind: Literal["search", "baseline", "attribution"] | None = None,
    sort: Annotated[
        str, Query(max_length=100, description="`index`, `mean`, `finished_at` or an objective.")
    ] = "index",
    descending: bool = False,
    offset: Annotated[int, Query(ge=0, le=10**9)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    raw: Raw = False,
) -> CandidatePage:
    """List proposals, scored or not; those without what they are sorted by come last."""
    with parts.searches.reading(files) as opened:
        names = list(opened.archive.job.objectives)
        if sort not in {"index", "mean", "finished_at", *names}:
            known = ", ".join(("index", "mean", "finished_at", *names))
            raise ConfigError.single("sort", f"`{sort}` is none of {known}")
        table = candidate_table(opened, _believed(parts, opened, raw=raw, fresh=False))
    found = [row for row in table if state in (None, row.state) and kind in (None, row.kind)]
    ordered = _sorted(found, sort, descending=descending)
    return CandidatePage(total=len(found), offset=offset, items=ordered[offset : offset + limit])


@router.get("/searches/{search}/points", responses=errors(404, 409, 422))
def show_points(parts: Parts, files: TheSearch, raw: Raw = False, fresh: Fresh = False) -> Points:
    """Return all scored candidates as columns, for charts."""
    with parts.searches.reading(files) as opened:
        believed = _believed(parts, opened, raw=raw, fresh=fresh)
        table = candidate_table(opened, believed)
        return opened.kept(
            "raw points" if raw else "points",
            lambda archive: points_of(archive, table, believed.belief, revision_of(believed.now)),
            depends_on=(believed.belief.state, believed.counters),
            at=believed.now,
        )


@router.get("/searches/{search}/candidates/{index}", responses=errors(404, 409, 422))
def show_candidate(parts: Parts, files: TheSearch, index: Index) -> CandidateDetail:
    """Return all that is recorded of a candidate: recipe, scores of every split, failure."""
    with parts.searches.reading(files) as opened:
        candidate_at(opened.archive, index)
        believed = parts.beliefs.of(opened)
        return candidate_detail(opened.archive, candidate_table(opened, believed)[index])


@router.get("/searches/{search}/candidates/{index}/items", responses=errors(404, 409, 422))
def show_items(
    parts: Parts, files: TheSearch, index: Index, split: SplitName = "search"
) -> ItemsAnswer:
    """Return the scores of a candidate item by item, with the texts that were kept."""
    with parts.searches.reading(files) as opened:
        return items_of(opened.archive, index, split)


@router.get("/searches/{search}/compare", responses=errors(404, 409, 422))
def compare(
    *,
    parts: Parts,
    files: TheSearch,
    a: Annotated[int, Query(ge=0, le=10**9, description="Index of a candidate.")],
    b: Annotated[int, Query(ge=0, le=10**9, description="Index of another.")],
    split: SplitName | None = None,
    which: Which = "differing",
    offset: Annotated[int, Query(ge=0, le=10**9)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
) -> CompareAnswer:
    """Compare two candidates item by item: paired differences, wins and losses, and texts."""
    with parts.searches.reading(files) as opened:
        archive: Archive = opened.archive
        for index in (a, b):
            candidate_at(archive, index)
        return compare_candidates(archive, a, b, split, ItemsWish(which, offset, limit))


def _believed(parts: Services, opened: OpenArchive, *, raw: bool, fresh: bool) -> Believed:
    return parts.beliefs.raw(opened) if raw else parts.beliefs.of(opened, fresh=fresh)


def _front_row(row: ScoredCandidate, table: list[CandidateRow], wish: FrontWish) -> FrontRow:
    known = table[row.candidate.index].model_dump()
    ranked_by = {
        "scores": scores_of(row.scores),
        "posterior": None if row.posterior is None else scores_of(row.posterior),
        "mean": row.mean,
        "on_front": True,
    }
    return FrontRow(
        **{**known, **ranked_by},
        genes=gene_table(row.candidate.recipe),
        chance=chance_of(row, wish.floors) if wish.floors else None,
    )


def _sorted(rows: list[CandidateRow], key: str, *, descending: bool) -> list[CandidateRow]:
    def value(row: CandidateRow) -> float | str | None:
        if key in {"index", "mean", "finished_at"}:
            found: float | str | None = getattr(row, key)
            return found
        scores = row.posterior or row.scores or {}
        return scores[key].value if key in scores else None

    known = [(value(row), row) for row in rows]
    with_value = [(found, row) for found, row in known if found is not None]
    # Only values are compared; rows of equal ones stay in their order.
    with_value.sort(key=lambda pair: pair[0], reverse=descending)
    return [row for _, row in with_value] + [row for found, row in known if found is None]


def _numbers(key: str, texts: list[str] | None) -> dict[str, float] | None:
    """Read ``NAME=NUMBER`` parameters.

    Raises:
        ConfigError: One is something else.
    """
    return numbers(texts or [], key, "the request cannot be read") or None
