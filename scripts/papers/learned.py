"""Merges that are learned or computed instead of searched: DAM, AdaMerging, delta-guided fusion."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from pandas import DataFrame

from configs.recipe import MergeRecipe
from optimizer.candidate import Observation
from optimizer.learning.directory import write_learned
from optimizer.learning.learn import learn_merge
from optimizer.learning.plan import plan_learning
from scripts.papers.bench import Bench, Lab
from scripts.papers.searching import search
from scripts.papers.study import Claim, Record, Study, Table, mean_of
from scripts.papers.zoos import SKILL_SPECIALISTS
from scripts.zoo.item import SKILLS, make_rng
from scripts.zoo.items import held_out_items, training_items

TEXTS, FAST_TEXTS = 256, 48
EVALUATIONS, FAST_EVALUATIONS = 60, 24
LEARNED: Mapping[str, tuple[str, dict[str, object]]] = {
    "DAM": ("dam", {"steps": 300}),
    "AdaMerging, task": ("adamerging", {"steps": 100, "granularity": "task", "lr": 1e-2}),
    "AdaMerging, layer": ("adamerging", {"steps": 100, "granularity": "layer", "lr": 1e-2}),
}
"""Label -> method and options. AdaMerging has ten times its learning rate, since it gets a fifth of
its steps."""

_FAST_STEPS = {"dam": 40, "adamerging": 15}
_SCALES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2)
_FUSED_SCALES = (0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.4)
_SEARCH = "search"


def measure(bench: Bench) -> list[Record]:
    """Learn, compute and search merges of the three specialists, and score them all."""
    texts = bench.made(
        "texts", (TEXTS, FAST_TEXTS, bench.fast), lambda out: write_texts(bench, out)
    )
    learned = {name: _learned(bench, name, texts) for name in LEARNED}
    places = {_plain(name): str(place / "merge") for name, place in learned.items()}
    budget = {"evaluations": FAST_EVALUATIONS if bench.fast else EVALUATIONS}
    records: list[Record] = []
    with bench.lab(SKILL_SPECIALISTS, baselines=places) as lab:
        for name, recipe in _merges(lab).items():
            records.append(_record(lab, name, recipe))
        for name, place in learned.items():
            spent = json.loads((place / "spent.json").read_text())
            records.append(_record(lab, name, lab.given[_plain(name)]) | spent)
        aims = {name: lab.mean(lab.given[_plain(name)], "select") for name in learned}
        as_weights = f"{_plain('DAM')}, as weights"
        records.append(_record(lab, "DAM, as plain weights", lab.given[as_weights]))
    # A search of its own that was given nothing.
    with bench.lab(SKILL_SPECIALISTS, budget=budget) as lab:
        records += _searched(lab, aims)
    return records


def write_texts(bench: Bench, out: Path) -> None:
    """Write prompts without answers for every skill, none of them held out."""
    count = FAST_TEXTS if bench.fast else TEXTS
    for skill in SKILLS:
        held_out = {item.prompt for item in held_out_items(skill, count=2048, seed=bench.seed)}
        items = training_items(
            {f"{skill}-full": 1.0},
            count=count,
            rng=make_rng(bench.seed, "unlabelled", skill),
            held_out=held_out,
        )
        lines = (json.dumps({"text": item.prompt + item.completion}) for item in items)
        (out / f"{skill}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        lines = (json.dumps({"text": item.prompt}) for item in items)
        (out / f"{skill}_prompts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _learned(bench: Bench, name: str, texts: Path) -> Path:
    """Learn a merge, once; returns the directory with it and what it took."""
    method, options = LEARNED[name]
    if bench.fast:
        options = options | {"steps": _FAST_STEPS[method]}

    def learn(out: Path) -> None:
        # DAM distils what a source would say, so it reads its own answers, too.
        kind = "" if method == "dam" else "_prompts"
        data = [f"{skill}={texts / f'{skill}{kind}.jsonl'}" for skill in SKILL_SPECIALISTS]
        job = bench.job(SKILL_SPECIALISTS)
        plan = plan_learning(job, method, out / "merge", options=options, data=data)
        started = time.process_time()
        write_learned(plan, learn_merge(plan))
        spent = {"seconds": time.process_time() - started}
        (out / "spent.json").write_text(json.dumps(spent))

    key = (options, texts.name, bench.digest(*SKILL_SPECIALISTS))
    return bench.made(f"learned-{_plain(name)}", key, learn)


def _plain(name: str) -> str:
    """Return a label as jobs and directories may have it."""
    return name.replace(", ", "-").replace(" ", "-")


def _merges(lab: Lab) -> dict[str, MergeRecipe]:
    """Return the merges that take no search; those that are tuned are so on search items."""
    ones = dict.fromkeys(SKILL_SPECIALISTS, 1.0)
    thirds = dict.fromkeys(SKILL_SPECIALISTS, 1.0 / len(SKILL_SPECIALISTS))

    def fused(scale: float) -> MergeRecipe:
        return lab.recipe(ones, method="delta_guided", options={"scale": scale})

    return {
        "average": lab.recipe(thirds),
        "task arithmetic, 0.3": lab.recipe(dict.fromkeys(SKILL_SPECIALISTS, 0.3)),
        "task arithmetic, tuned": lab.best(
            [lab.recipe(dict.fromkeys(SKILL_SPECIALISTS, scale)) for scale in _SCALES]
        ),
        "delta-guided": fused(1.0),
        "delta-guided, tuned": lab.best([fused(scale) for scale in _FUSED_SCALES]),
    }


def _record(lab: Lab, name: str, recipe: MergeRecipe) -> Record:
    by_skill = {task.removeprefix("zoo_"): score for task, score in lab.mean_scores(recipe).items()}
    return {"merge": name, **by_skill, "score": float(np.mean(list(by_skill.values())))}


def _searched(lab: Lab, aims: Mapping[str, float]) -> Iterator[Record]:
    """Search; yields its choice by search items, and what it took to be as good as each rival.

    ``aims`` are the rivals' means on select items, which decide when it is.
    """
    before = lab.paid["generate"].seconds
    told = search(lab, until="select").told
    seconds = (lab.paid["generate"].seconds - before) / len(told)
    best = incumbents(told)
    yield _record(lab, _SEARCH, best[-1]) | {"seconds": seconds * len(told)}
    means = [lab.mean(recipe, "select") for recipe in best]
    for name, aim in aims.items():
        matched = next((i + 1 for i, mean in enumerate(means) if mean >= aim), None)
        yield {
            "merge": f"{_SEARCH}, until as good as {name}",
            "seconds": seconds * (matched or len(told)),
            "reached": int(matched is not None),
        }


def incumbents(told: Sequence[Observation]) -> list[MergeRecipe]:
    """Return for every observation the merge with the best mean so far.

    Raises:
        ValueError: The first one failed.
    """
    best: tuple[float, MergeRecipe] | None = None
    found = []
    for seen in told:
        # Scores of a candidate that was stopped are estimates.
        if seen.scores is not None and seen.is_complete:
            mean = float(np.mean([score.value for score in seen.scores.values()]))
            if best is None or mean > best[0]:
                best = mean, seen.candidate.recipe
        if best is None:
            raise ValueError("the base could not be scored; check the zoo")
        found.append(best[1])
    return found


def _gap(records: DataFrame, first: str, second: str) -> float:
    return mean_of(records, merge=first) - mean_of(records, merge=second)


def _seconds(records: DataFrame, merge: str) -> float:
    return mean_of(records, "seconds", merge=merge)


def _notes(records: DataFrame) -> Sequence[str]:
    lines = []
    for name in LEARNED:
        rows = records[records["merge"] == f"{_SEARCH}, until as good as {name}"]
        lines.append(
            f"{name} took {_seconds(records, name):.0f} processor seconds to learn; the search was "
            f"as good on select items in {int(rows['reached'].sum())} of {len(rows)} seeds, after "
            f"{rows['seconds'].mean():.0f} (all of its time where it never was)."
        )
    return lines


_AS_DAM = f"{_SEARCH}, until as good as DAM"

LEARNED_MERGES = Study(
    name="learned",
    title="Learned and computed merges: DAM, AdaMerging, delta-guided fusion",
    papers=(
        "Gauthier-Caron et al., Merging in a Bottle: Differentiable Adaptive Merging (DAM), "
        "arXiv:2410.08371",
        "Yang et al., AdaMerging, arXiv:2310.02575",
        "CoDiEmb (delta-guided fusion; the formula is ours), arXiv:2508.11442",
    ),
    how=f"""
The three specialists, merged by DAM (300 steps, AdamW at 1e-3, temperature 2, on {TEXTS} texts per
skill with answers, each specialist on its own; where it differs from the authors' code is in
`workers/learning/dam.py`), AdaMerging (100 steps of Adam at 1e-2, ten times the paper's rate for a
fifth of its steps, so that weights may come as far; entropy of the answers that the merge itself
writes to {TEXTS} prompts per skill), and delta-guided fusion, as `mergefront learn` and the merge
methods do it; against averages, task arithmetic with one of {len(_SCALES)} scales chosen on search
items (of delta-guided fusion as many), and a search of {EVALUATIONS} evaluations with the defaults
of a job (`surrogate_cma`) that was given none of them (its merge is the best mean on search items).
It is as good as a rival once its best so far has the rival's mean on select items. Seconds are
processor seconds: of learning, and of scoring for the search, whose own model is not counted.""",
    measure=measure,
    checkpoints=SKILL_SPECIALISTS,
    claims=(
        Claim(
            key="dam_beats_average",
            text="This study: learned coefficients are better than equal ones.",
            measured="mean score, DAM minus average",
            value=lambda r: _gap(r, "DAM", "average"),
        ),
        Claim(
            key="dam_beats_tuned_scale",
            text="This study: they are better than one scale that is tuned on search items.",
            measured="mean score, DAM minus task arithmetic with a tuned scale",
            value=lambda r: _gap(r, "DAM", "task arithmetic, tuned"),
            fast_below=0.0,
        ),
        Claim(
            key="dam_costs_less_than_search",
            text="""DAM is an alternative to evolutionary merging that minimizes computational
            demands (DAM, abstract).""",
            measured="""log2 of processor seconds: all evaluations of the search over all steps of
            DAM, two budgets of this study""",
            value=lambda r: float(np.log2(_seconds(r, _SEARCH) / _seconds(r, "DAM"))),
        ),
        Claim(
            key="dam_costs_less_than_as_good",
            text="... and less than the search until it is as good, were it by a checkpoint alone.",
            measured="""log2 of processor seconds: the search until it is as good on select items
            (all of its time where it never was), over DAM's; by what it was is said below""",
            value=lambda r: float(np.log2(_seconds(r, _AS_DAM) / _seconds(r, "DAM"))),
        ),
        Claim(
            key="columns_matter",
            text="""A coefficient per column says more than one weight per checkpoint (the reason
            for DAM's form).""",
            measured="mean score, DAM minus the same coefficients averaged to plain weights",
            value=lambda r: _gap(r, "DAM", "DAM, as plain weights"),
        ),
        Claim(
            key="adamerging_beats_fixed_scale",
            text="AdaMerging beats task arithmetic at scale 0.3 (AdaMerging).",
            measured="mean score, AdaMerging by task minus task arithmetic at 0.3",
            value=lambda r: _gap(r, "AdaMerging, task", "task arithmetic, 0.3"),
            fast_above=0.0,
        ),
        Claim(
            key="adamerging_beats_tuned_scale",
            text="This study: it beats one scale that is tuned on search items, too.",
            measured="mean score, AdaMerging by task minus task arithmetic with a tuned scale",
            value=lambda r: _gap(r, "AdaMerging, task", "task arithmetic, tuned"),
        ),
        Claim(
            key="layers_beat_tasks",
            text="Layer-wise weights are better than one per task (AdaMerging).",
            measured="mean score, AdaMerging by layer minus by task",
            value=lambda r: _gap(r, "AdaMerging, layer", "AdaMerging, task"),
        ),
        Claim(
            key="delta_guided_beats_tuned_scale",
            text="Weighing each parameter by its deviations is better than averaging (CoDiEmb).",
            measured="""mean score, delta-guided minus task arithmetic, both with a scale that was
            tuned: sizes differ otherwise""",
            value=lambda r: _gap(r, "delta-guided, tuned", "task arithmetic, tuned"),
        ),
        Claim(
            key="search_beats_learned",
            text="This study: a search is at least as good as what was learned or computed.",
            measured="""mean score, search minus the best of the others (the best by report items,
            which favours them)""",
            margin=-0.01,
            value=lambda r: (
                mean_of(r, merge=_SEARCH)
                - float(r[r["merge"] != _SEARCH].groupby("merge")["score"].mean().max())
            ),
        ),
    ),
    tables=(
        Table("Mean of the three skills on report items", ("merge",), "width", "score"),
        Table("Processor seconds", ("merge",), "width", "seconds", digits=0),
    ),
    notes=_notes,
)
