from pathlib import Path

import pytest
from pandas import DataFrame

from configs.schema import JobConfig
from optimizer.baselines import BaselinePlan
from optimizer.candidate import Candidate
from optimizer.space import SearchSpace
from scripts.papers.cells import imported_modules
from scripts.papers.dare import DARE
from scripts.papers.front import FRONT
from scripts.papers.learned import EVALUATIONS, FAST_EVALUATIONS, LEARNED, LEARNED_MERGES
from scripts.papers.remarks import (
    EARLY,
    FAST_PROPOSED,
    PROPOSED,
    of_dare,
    of_encoders,
    of_parts,
    remarks,
)
from scripts.papers.studies import STUDIES
from scripts.papers.study import Claim, Study, mean_of
from scripts.papers.zoos import SKILL_SPECIALISTS
from workers.sources import ResolvedSource, Sources


@pytest.mark.parametrize("study", STUDIES)
def test_remarks_measure_nothing(study: str) -> None:
    assert "scripts.papers.remarks" not in imported_modules(STUDIES[study].measure.__module__)


def test_study_without_remarks_has_none() -> None:
    assert remarks(FRONT, DataFrame(), fast=False) == []


def dare_records(ratio: float) -> DataFrame:
    tuned = {"instruct": 0.6, "code": 0.5, "math": 0.7, "math_longer": 1.0}
    return DataFrame(
        [
            {
                "width": width,
                "seed": seed,
                "checkpoint": name,
                "tuned": score + (0.2 if width == 128 and name != "math_longer" else 0.0),
                "delta_median": 0.001 * (ratio + seed if name == "math_longer" else 1.0),
                "delta_p99": 0.01 * (2 * ratio if name == "math_longer" else 1.0),
            }
            for width in (128, 256)
            for seed in (0, 1)
            for name, score in tuned.items()
        ]
    )


def test_how_much_longer_deltas_are_is_said_in_numbers() -> None:
    narrow, wide, trained = of_dare(dare_records(9.0), fast=False)
    assert "9.5 (9.0 to 10.0) times in the median and 18.0 (18.0 to 18.0) times at the" in narrow
    assert narrow.startswith("Width 128")
    assert wide.startswith("Width 256")
    assert wide.endswith("ten times in the median is reached in 1 of 2 seeds.")
    assert "width 256 score 0.50 to 0.70 on their own skills" in trained
    assert "width 128 0.70 to 0.90" in trained
    assert "the wider ones are trained less far" in trained


def test_wider_ones_are_not_called_less_trained_where_one_is_not() -> None:
    records = dare_records(9.0)
    is_better = (records["width"] == 256) & (records["checkpoint"] == "code")
    records.loc[is_better, "tuned"] = 0.8
    *_, trained = of_dare(records, fast=False)
    assert trained.endswith("width 128 0.70 to 0.90 (means over seeds).")


def test_fast_run_has_one_width_to_speak_of() -> None:
    records = dare_records(9.0)
    (only,) = remarks(DARE, records[(records["width"] == 128) & (records["seed"] == 0)], fast=True)
    assert "9.0 times in the median" in only


def encoder_records() -> DataFrame:
    fused = {
        "retrieval alone": (0.6, 0.0),
        "similarity alone": (0.0, 0.8),
        "joint alone": (0.2, 0.7),
        "average of both": (0.1, 0.5),
        "average of the joint one, two stages": (0.15, 0.69),
        "the best of these by search items": (0.15, 0.69),
        "search": (0.1, 0.75),
    }
    rows: list[dict[str, object]] = []
    for seed in (1, 2, 3):
        for fusion, scores in fused.items():
            worse = 0.5 if (seed, fusion) == (2, "retrieval alone") else 1.0
            rows += [
                {"seed": seed, "fusion": fusion, "objective": objective, "fused": worse * score}
                for objective, score in zip(("retrieval", "similarity"), scores, strict=True)
            ]
        rows.append({"seed": seed, "checkpoint": "steps", "tuned": 0.5 if seed == 1 else 1.0})
    return DataFrame(rows)


def test_chosen_fusion_and_failed_trainings_are_named() -> None:
    chosen, share, failed = of_encoders(encoder_records(), fast=False)
    assert chosen == (
        "Chosen on search items: average of the joint one, two stages (seeds 1, 2, 3)."
    )
    assert "0.200, and the chosen fusion 0.050 less, which is 25 %" in share
    assert "`steps` has 0.50 in seed 1, where the median of all seeds is 1.00" in failed
    assert "retrieval alone has 0.30 in seed 2, where the median of all seeds is 0.60" in failed
    assert "similarity" not in failed


def test_parts_that_are_decided_otherwise_are_named() -> None:
    def between(records: DataFrame) -> float:
        return mean_of(records, how="a") - mean_of(records, how="b")

    study = Study(
        name="one",
        title="",
        papers=(),
        how="",
        measure=lambda _: [],
        checkpoints=(),
        claims=(
            Claim(key="gain", text="", measured="mean\n score", value=mean_of),
            # Not about one part, so it is left out.
            Claim(key="between", text="", measured="a minus b", value=between),
        ),
        tables=(),
    )
    scores = {"a": 0.5, "b": 0.3, "c": -0.1}
    records = DataFrame(
        [
            {"seed": seed, "how": how, "score": score + seed / 100}
            for seed in (1, 2)
            for how, score in scores.items()
        ]
    )
    assert list(of_parts(study, "how", records)) == [
        '"mean score" is otherwise in parts: c -0.085 (-0.149 to -0.021), does not hold '
        "(all together: holds)."
    ]
    assert list(of_parts(study, "how", records[records["how"] != "c"])) == []


def learned_records(counts: dict[int, int | None]) -> DataFrame:
    rows: list[dict[str, object]] = []
    for seed, count in counts.items():
        rows += [
            {"seed": seed, "merge": "average", "score": 0.6},
            {"seed": seed, "merge": "DAM", "score": 0.6, "seconds": 40.0},
            {"seed": seed, "merge": "search", "score": 0.7, "seconds": 0.5 * EVALUATIONS},
        ]
        rows += [
            {
                "seed": seed,
                "merge": f"search, until as good as {name}",
                "seconds": 0.5 * (EVALUATIONS if count is None else count),
                "reached": int(count is not None),
            }
            for name in LEARNED
        ]
    return DataFrame(rows)


def test_what_was_as_good_is_told_by_its_place() -> None:
    counts = {1: 3, 2: 3, 3: 5, 4: 9, 5: 20, 6: 21, 7: None}
    said = remarks(LEARNED_MERGES, learned_records(counts), fast=False)
    assert said[0] == (
        "The search is as good as DAM on select items by: evaluation 3, checkpoint code "
        "(seeds 1, 2); evaluation 5, uniform soup (seed 3); evaluation 9, a proposal (seed 4); "
        "evaluation 20, a proposal (seed 5); evaluation 21, a proposal or a later baseline "
        "(seed 6); nothing (seed 7)."
    )
    assert said[3] == (
        "A search's first 8 evaluations are baselines. All 60 take 30 processor seconds to score, "
        "DAM's steps 40."
    )
    assert said[4].startswith("DAM is not shown to be better than the average")


@pytest.mark.parametrize(
    ("evaluations", "proposed"), [(EVALUATIONS, PROPOSED), (FAST_EVALUATIONS, FAST_PROPOSED)]
)
def test_searches_begin_with_these_baselines(evaluations: int, proposed: int) -> None:
    job = JobConfig.model_validate(
        {
            "models": {
                "base": "zoo/base",
                "checkpoints": {name: f"zoo/{name}" for name in SKILL_SPECIALISTS},
            },
            "objectives": {name: f"zoo_{name}" for name in SKILL_SPECIALISTS},
            "archive": "archive.sqlite",
        }
    )
    base, *tuned = (
        ResolvedSource(name, Path("zoo") / name, digest=name * 4)
        for name in ("base", *SKILL_SPECIALISTS)
    )
    space = SearchSpace(job, Sources(base, tuple(tuned)))
    plan = BaselinePlan(space, SKILL_SPECIALISTS, job.preference)
    asked: list[Candidate] = []
    own = 0
    for left in range(evaluations, 0, -1):
        baseline = plan.next(asked, [], left=left, num_own=own)
        if baseline is None:
            own += 1
            continue
        if own:
            break
        genotype = space.encode(baseline.recipe.weights)
        asked.append(Candidate(len(asked), genotype, baseline.recipe, baseline.origin, 0))
    assert tuple(one.origin.removeprefix("baseline:") for one in asked) == EARLY
    assert own >= proposed
