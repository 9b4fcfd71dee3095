"""Fronts of interpolated weights (rewarded soups) beside the front of a search.

Rewarded soups (Rame et al., arXiv:2306.04488): one network C_i per objective, tuned from one
initialization B, and the merges sum_i l_i C_i for all l of the simplex (l_i >= 0, sum_i l_i = 1).
With d_i = C_i - B that is B + sum_i l_i d_i; scaled interpolations here are B + s sum_i l_i d_i.
"""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from pandas import DataFrame

from configs.recipe import MergeRecipe
from evaluators.scores import FloatArray, aggregate
from optimizer.candidate import Candidate, Observation
from optimizer.pareto import hypervolume
from scripts.bench.zoo_runs import FRONT_SIZE, REFERENCE_SHARE, returned_front
from scripts.papers.bench import Bench, Lab
from scripts.papers.searching import search
from scripts.papers.study import Claim, Record, Study, Table, mean_of
from scripts.papers.zoos import SKILL_SPECIALISTS
from workers.outcome import Failed

INTERPOLATED, SCALED, SEARCHED = "interpolations", "scaled interpolations", "search"
SCALES = (1.0, 1.5, 2.0)
STEPS, SCALED_STEPS = 10, 5
FAST_STEPS, FAST_SCALED_STEPS = 6, 3
_FAST_FRONT = 3
_CLOSE = 0.05
_SEARCH = {"strategy": "surrogate_cma", "racing": {"enabled": False}}

Point = tuple[float, ...]


def simplex_grid(count: int, steps: int) -> list[Point]:
    """Return all points of the simplex whose ``count`` coordinates are multiples of 1/steps.

    There are (steps + count - 1 choose count - 1) of them; vertices are among them.
    """
    return [
        tuple(part / steps for part in parts)
        for parts in itertools.product(range(steps, -1, -1), repeat=count)
        if sum(parts) == steps
    ]


def scaled_grid(count: int, steps: int) -> list[Point]:
    """Return a grid of the simplex and its middle, times every scale."""
    middle = (1.0 / count,) * count
    points = dict.fromkeys([*simplex_grid(count, steps), middle])
    return [tuple(scale * part for part in point) for scale in SCALES for point in points]


def interpolation_gain(weights: FloatArray, scores: FloatArray) -> float:
    """Return how much better interpolated weights are than interpolated scores.

    The mean over points inside the simplex or on its edges, and over skills, of
    score(sum_i l_i C_i) - sum_i l_i score(C_i). It is negative where a barrier lies between
    checkpoints, and at least 0 where they are linearly connected.

    Args:
        weights: ``(n, c)`` points of the simplex, every vertex among them.
        scores: ``(n, m)`` of the merges there.

    Raises:
        ValueError: A vertex is missing.
    """
    corners = np.eye(weights.shape[1])
    rows = [np.flatnonzero((weights == corner).all(axis=1)) for corner in corners]
    if any(len(found) == 0 for found in rows):
        raise ValueError("weights must hold every vertex of the simplex")
    ends = scores[[found[0] for found in rows]]
    between = ~(weights == 1.0).any(axis=1)
    return float((scores - weights @ ends)[between].mean())


def measure(bench: Bench) -> list[Record]:
    """Score both grids and search with as many evaluations; then the fronts on report items."""
    count = len(SKILL_SPECIALISTS)
    steps = FAST_STEPS if bench.fast else STEPS
    grid = simplex_grid(count, steps)
    scaled = scaled_grid(count, FAST_SCALED_STEPS if bench.fast else SCALED_STEPS)
    size = _FAST_FRONT if bench.fast else FRONT_SIZE
    # The base is scored beside the grid, and is one of the search's baselines.
    budget = {"evaluations": len(grid) + 1}
    with bench.lab(SKILL_SPECIALISTS, search=_SEARCH, budget=budget) as lab:
        interpolated = told_of(lab, grid)
        records = [*_of_front(lab, INTERPOLATED, interpolated, size)]
        records += _of_front(lab, SCALED, told_of(lab, scaled), size)
        records += _of_front(lab, SEARCHED, search(lab, until="select").told, size)
        scores = _matrix(interpolated[1:])
        gain = interpolation_gain(np.array(grid), scores)
    records.append({"front": INTERPOLATED, "number": "gain", "gain": gain})
    return records


def told_of(lab: Lab, weights: Sequence[Point]) -> list[Observation]:
    """Score merges on search items, the base first, as a search would be told of them."""
    job = lab.jobs["generate"]
    names = [source.name for source in lab.sources.checkpoints]
    told = []
    for index, row in enumerate([(0.0,) * len(names), *weights]):
        recipe = lab.recipe(dict(zip(names, row, strict=True)), method=lab.space.method)
        found = lab.scores(recipe, lab.manifest.items("search"))
        scores = None if isinstance(found, Failed) else aggregate(job.objectives, found)
        origin = "strategy:grid" if index else "baseline:base"
        genotype = lab.space.encode(recipe.weights)
        told.append(Observation(Candidate(index, genotype, recipe, origin, index), scores))
    return told


def _of_front(lab: Lab, front: str, told: Sequence[Observation], size: int) -> Iterator[Record]:
    """Yield what a front is worth on report items.

    Its members are those that a search would return of what was told, by search items alone.
    """
    members = returned_front(lab.jobs["generate"], lab.space, told)[:size]
    points = np.array([_report(lab, member.recipe) for member in members])
    reference = REFERENCE_SHARE * _report(lab, lab.recipe({}, method=lab.space.method))
    numbers = {
        "hypervolume": hypervolume(points, reference) / float(np.prod(1.0 - reference)),
        "best mean": float(points.mean(axis=1)[0]),
        **{
            f"best {skill}": best
            for skill, best in zip(
                lab.jobs["generate"].objectives, points.max(axis=0).tolist(), strict=True
            )
        },
    }
    for number, value in numbers.items():
        yield {"front": front, "number": number, "value": value}
    for number, count in (("members", len(members)), ("evaluations", len(told))):
        yield {"front": front, "number": number, "count": count}


def _report(lab: Lab, recipe: MergeRecipe) -> FloatArray:
    return np.array(list(lab.mean_scores(recipe).values()))


def _matrix(told: Sequence[Observation]) -> FloatArray:
    """Return the scores of merges, ``(n, m)``; 0 for those that could not be scored."""
    return np.array(
        [
            [0.0 if seen.scores is None else seen.scores[name].value for name in SKILL_SPECIALISTS]
            for seen in told
        ]
    )


def _ratio(records: DataFrame, first: str, second: str) -> float:
    """Return how many times the hypervolume of the second front the first one has."""
    one, other = (
        mean_of(records, "value", front=front, number="hypervolume") for front in (first, second)
    )
    return one / other


def _notes(records: DataFrame) -> Sequence[str]:
    lines = []
    for front in (INTERPOLATED, SCALED):
        ratios = [_ratio(part, front, SEARCHED) for _, part in records.groupby("seed")]
        lines.append(
            f"The front of {front} has {np.mean(ratios):.2f} times the hypervolume of the searched "
            f"one (by seed {', '.join(f'{ratio:.2f}' for ratio in ratios)})."
        )
    return lines


FRONT = Study(
    name="soups_front",
    title="Rewarded soups: the front of interpolations beside a searched one",
    papers=("Rame et al., Rewarded soups, arXiv:2306.04488",),
    how=f"""
Three specialists, one per skill. Interpolations lie on a grid of the simplex with steps of
1/{STEPS}; scaled ones on a grid with steps of 1/{SCALED_STEPS} and its middle, times
{", ".join(map(str, SCALES))}, as task arithmetic; the search is `surrogate_cma` over one weight and
one drop ratio per specialist, its baselines included. All have the same number of evaluations on
search items (29 to 31 with `--fast`), the base's included. Of each, the front is what a search
would return (by the
posterior mean of the surrogate, at most {FRONT_SIZE} members that spread best, the first with the
best mean), and its hypervolume is that of report items above {REFERENCE_SHARE} times the base's
scores, as a share of what perfect scores would have. Best by skill is the best member's. With
`--fast` grids are coarser, and fronts have at most {_FAST_FRONT} members.""",
    measure=measure,
    checkpoints=SKILL_SPECIALISTS,
    claims=(
        Claim(
            key="specialists_are_connected",
            text="""Weights remain linearly connected when they are tuned on diverse objectives from
            one initialization (abstract).""",
            measured="""score of interpolated weights minus interpolated scores, mean over the grid
            and skills, search items""",
            value=lambda r: mean_of(r, "gain", number="gain"),
            fast_above=0.0,
        ),
        Claim(
            key="interpolations_near_pareto",
            text="""Interpolating the weights of specialists is towards Pareto-optimal: little is
            left to gain (title, abstract).""",
            measured="""hypervolume of interpolations as a share of the searched front's, minus 1;
            close is within 5 %""",
            value=lambda r: _ratio(r, INTERPOLATED, SEARCHED) - 1.0,
            margin=-_CLOSE,
            fast_below=-_CLOSE,
        ),
    ),
    tables=(
        Table("Fronts on report items", ("front",), "number", "value"),
        Table("Merges scored, and members of the front", ("front",), "number", "count", digits=0),
    ),
    notes=_notes,
)
