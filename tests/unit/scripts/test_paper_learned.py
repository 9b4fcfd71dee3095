import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from pandas import DataFrame

from configs.recipe import Group, MergeRecipe, Source
from evaluators.scores import ObjectiveScore
from optimizer.candidate import Candidate, Observation
from scripts.papers.learned import LEARNED, LEARNED_MERGES, incumbents, write_texts
from scripts.papers.study import judge
from scripts.zoo.items import held_out_items


def recipe(weight: float) -> MergeRecipe:
    return MergeRecipe(
        method="task_arithmetic",
        base=Source(name="base", digest="0"),
        checkpoints=(Source(name="math", digest="1"),),
        groups=(Group(name="all", patterns=(".*",)),),
        weights=((weight,),),
        drop_ratios=((0.0,),),
        dtype="float32",
    )


def told(*means: float | None) -> list[Observation]:
    return [
        Observation(
            Candidate(index, np.zeros(1), recipe(float(index)), "strategy:x", index),
            None
            if mean is None
            else {"a": ObjectiveScore(mean, 0.1, 8), "b": ObjectiveScore(0.5, 0.1, 8)},
        )
        for index, mean in enumerate(means)
    ]


def test_incumbent_is_the_best_so_far_and_failures_change_nothing() -> None:
    found = incumbents(told(0.3, 0.2, None, 0.4, 0.4))
    assert [one.weights[0][0] for one in found] == [0.0, 0.0, 0.0, 3.0, 3.0]


def test_estimate_of_a_stopped_candidate_is_no_incumbent() -> None:
    seen = told(0.3, 0.4, 0.9)
    stopped = dataclasses.replace(seen[2], stopped="racing")
    assert not stopped.is_complete
    assert [one.weights[0][0] for one in incumbents([*seen[:2], stopped])] == [0.0, 1.0, 1.0]


def test_search_that_begins_with_a_failure_has_no_incumbent() -> None:
    with pytest.raises(ValueError, match="base could not be scored"):
        incumbents(told(None, 0.2))


def test_texts_are_unlabelled_where_they_must_be_and_never_held_out(tmp_path: Path) -> None:
    class Fast:
        seed, fast = 0, True

    write_texts(Fast(), tmp_path)  # type: ignore[arg-type]  # of a bench it takes these two
    prompts = [
        json.loads(line)["text"]
        for line in (tmp_path / "math_prompts.jsonl").read_text().splitlines()
    ]
    texts = [
        json.loads(line)["text"] for line in (tmp_path / "math.jsonl").read_text().splitlines()
    ]
    assert all(prompt.endswith("Answer:") for prompt in prompts)
    assert all(text.startswith(prompt) for text, prompt in zip(texts, prompts, strict=True))
    held_out = {item.prompt for item in held_out_items("math", count=2048, seed=0)}
    assert not held_out & set(prompts)


def rows(dam_s: float, search_s: float) -> DataFrame:
    scores = {
        "average": 0.5,
        "task arithmetic, 0.3": 0.55,
        "task arithmetic, tuned": 0.7,
        "delta-guided": 0.6,
        "delta-guided, tuned": 0.68,
        "DAM": 0.65,
        "DAM, as plain weights": 0.6,
        "AdaMerging, task": 0.7,
        "AdaMerging, layer": 0.75,
        "search": 0.8,
    }
    records: list[dict[str, object]] = [
        {"seed": 0, "width": 128, "merge": name, "score": score} for name, score in scores.items()
    ]
    records[list(scores).index("DAM")]["seconds"] = dam_s
    records[list(scores).index("search")]["seconds"] = 2 * search_s
    for name in LEARNED:
        merge = f"search, until as good as {name}"
        records.append({"seed": 0, "width": 128, "merge": merge, "seconds": search_s, "reached": 1})
    return DataFrame(records)


def test_claims_are_the_differences_that_they_say() -> None:
    found = {c.key: judge(c, rows(20.0, 80.0)).mean for c in LEARNED_MERGES.claims}
    assert found == pytest.approx(
        {
            "dam_beats_average": 0.15,
            "dam_beats_tuned_scale": -0.05,
            "dam_costs_less_than_search": math.log2(8.0),
            "dam_costs_less_than_as_good": math.log2(4.0),
            "columns_matter": 0.05,
            "adamerging_beats_fixed_scale": 0.15,
            "adamerging_beats_tuned_scale": 0.0,
            "layers_beat_tasks": 0.05,
            "delta_guided_beats_tuned_scale": -0.02,
            "search_beats_learned": 0.05,
        }
    )
