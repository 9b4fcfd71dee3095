"""What the page says of some studies' records beyond claims, where that takes code of its own.

Apart from the modules that measure, whose digests name cells: a new remark measures nothing again.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from pandas import DataFrame, Series

from scripts.papers.dare import DARE
from scripts.papers.encoders import ENCODERS
from scripts.papers.encoders_merges import EMBEDDED
from scripts.papers.learned import EVALUATIONS, FAST_EVALUATIONS, LEARNED, LEARNED_MERGES
from scripts.papers.lora import LORA
from scripts.papers.merges import MERGES
from scripts.papers.study import Study, judge, mean_of
from scripts.papers.zoos import LONGER, NARROW, SKILL_SPECIALISTS, WIDE

EARLY = (
    "base",
    *(f"checkpoint {name}" for name in SKILL_SPECIALISTS),
    "uniform soup",
    *(f"task arithmetic {scale}" for scale in (0.4, 0.7, 1.0)),
)
"""What a search of the specialists evaluates before it proposes anything, in that order."""

PROPOSED, FAST_PROPOSED = 12, 4
"""How many proposals follow these before it turns to another baseline."""

_LONGER = 10.0
_CHOSEN = "the best of these by search items"
# What is below this share of the median over seeds.
_FAILED = 0.85


def of_dare(records: DataFrame, *, fast: bool) -> Iterator[str]:
    """Say how much longer the long deltas are, and how well the widths are trained."""
    del fast
    ones = records.drop_duplicates(["width", "seed", "checkpoint"])
    for width, part in ones.groupby("width"):
        by_seed = part.set_index(["checkpoint", "seed"])
        sizes = []
        for column, where in (
            ("delta_median", "in the median"),
            ("delta_p99", "at the 99th percentile"),
        ):
            ratios = by_seed.loc[LONGER.name, column] / by_seed.loc["math", column]
            sizes.append((where, ratios))
        told = " and ".join(f"{_spread(ratios, 1)} times {where}" for where, ratios in sizes)
        reached = int((sizes[0][1] >= _LONGER).sum())
        yield (
            f"Width {width}: deltas of `{LONGER.name}` are larger than those of `math` {told}; ten "
            f"times in the median is reached in {reached} of {len(sizes[0][1])} seeds."
        )
    tuned = ones[ones["checkpoint"].isin(SKILL_SPECIALISTS)]
    by_width = tuned.groupby(["width", "checkpoint"])["tuned"].mean()
    if {NARROW, WIDE} <= set(tuned["width"]):
        narrow, wide = by_width.loc[NARROW], by_width.loc[WIDE]
        less_far = ": the wider ones are trained less far, and that may be what they tolerate"
        yield (
            f"The specialists of width {WIDE} score {wide.min():.2f} to {wide.max():.2f} on their "
            f"own skills, those of width {NARROW} {narrow.min():.2f} to {narrow.max():.2f} (means "
            f"over seeds){less_far if (wide < narrow).all() else ''}."
        )


def of_encoders(records: DataFrame, *, fast: bool) -> Iterator[str]:
    """Say which fusion was chosen, by how much it is off, and which trainings failed."""
    del fast
    chosen = {int(seed): _chosen(part) for seed, part in records.groupby("seed")}
    yield "Chosen on search items: " + _by_seed(chosen) + "."
    joint = mean_of(records, "fused", fusion="joint alone", objective="retrieval")
    less = joint - mean_of(records, "fused", fusion=_CHOSEN, objective="retrieval")
    yield (
        f"In retrieval the joint model has {joint:.3f}, and the chosen fusion {less:.3f} less, "
        f"which is {100 * less / joint:.0f} % of that; retrieval alone has "
        f"{mean_of(records, 'fused', fusion='retrieval alone', objective='retrieval'):.3f}."
    )
    scores = {
        f"`{name}`": part.groupby("seed")["tuned"].mean()
        for name, part in records.dropna(subset=["tuned"]).groupby("checkpoint", sort=False)
    }
    for objective in EMBEDDED:
        rows = records[
            (records["fusion"] == f"{objective} alone") & (records["objective"] == objective)
        ]
        scores[f"{objective} alone"] = rows.groupby("seed")["fused"].mean()
    failed = [
        f"{name} has {value:.2f} in seed {seed}, where the median of all seeds is {of.median():.2f}"
        for name, of in scores.items()
        for seed, value in of.items()
        if value < _FAILED * of.median()
    ]
    if failed:
        yield "Trainings that came less far, and are in all means: " + "; ".join(failed) + "."


def _chosen(records: DataFrame) -> str:
    """Return which fusions have the scores of the chosen one, bit for bit."""
    by_way = records.dropna(subset=["fused"]).pivot_table(
        index="fusion", columns="objective", values="fused", sort=False
    )
    same = (by_way == by_way.loc[_CHOSEN]).all(axis=1)
    return " or ".join(str(name) for name in by_way.index[same] if name != _CHOSEN)


def of_learned(records: DataFrame, *, fast: bool) -> Iterator[str]:
    """Say by what the search came to be as good as each learned merge."""
    evaluations = FAST_EVALUATIONS if fast else EVALUATIONS
    for name in LEARNED:
        by = {
            int(seed): _as_good_by(part, name, evaluations, FAST_PROPOSED if fast else PROPOSED)
            for seed, part in records.groupby("seed")
        }
        yield f"The search is as good as {name} on select items by: {_by_seed(by)}."
    total = mean_of(records, "seconds", merge="search")
    yield (
        f"A search's first {len(EARLY)} evaluations are baselines. All {evaluations} take "
        f"{total:.0f} processor seconds to score, DAM's steps "
        f"{mean_of(records, 'seconds', merge='DAM'):.0f}."
    )
    (claim,) = (one for one in LEARNED_MERGES.claims if one.key == "dam_beats_average")
    judged = judge(claim, records)
    if judged.verdict != "holds" and len(judged.by_seed) > 1:
        yield (
            "DAM is not shown to be better than the average, which costs nothing: what it costs to "
            "be as good as it says little about either."
        )


def _as_good_by(records: DataFrame, name: str, evaluations: int, proposed: int) -> str:
    """Return the evaluation at which a search was as good, and what was evaluated there.

    Every evaluation counts as many seconds, so that seconds are a number of them.
    """
    until = f"search, until as good as {name}"
    if not mean_of(records, "reached", merge=until):
        return "nothing"
    share = mean_of(records, "seconds", merge=until) / mean_of(records, "seconds", merge="search")
    count = round(evaluations * share)
    if count <= len(EARLY):
        return f"evaluation {count}, {EARLY[count - 1]}"
    is_own = count <= len(EARLY) + proposed
    return f"evaluation {count}, {'a proposal' if is_own else 'a proposal or a later baseline'}"


def of_parts(study: Study, column: str, records: DataFrame) -> Iterator[str]:
    """Say where a part is decided otherwise than the mean over all parts, which may hide it.

    Args:
        study: Whose claims.
        column: Whose values are the parts.
        records: Of at least two seeds, else nothing is decided.
    """
    for claim in study.claims:
        try:
            whole = judge(claim, records)
            parts = {
                str(value): judge(claim, part)
                for value, part in records.groupby(column, sort=False)
                if all(math.isfinite(claim.value(one)) for _, one in part.groupby("seed"))
            }
        except ValueError:
            # It compares parts, or is not about them.
            continue
        others = [
            f"{name} {one.mean:+.3f} ({one.low:+.3f} to {one.high:+.3f}), {one.verdict}"
            for name, one in parts.items()
            if one.verdict != whole.verdict
        ]
        if others and len(parts) > 1:
            yield (
                f'"{" ".join(claim.measured.split())}" is otherwise in parts: '
                f"{'; '.join(others)} (all together: {whole.verdict})."
            )


def _spread(values: "Series[float]", digits: int) -> str:
    """Return the mean of some numbers, and the least and the largest where there are several."""
    mean = f"{values.mean():.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ({values.min():.{digits}f} to {values.max():.{digits}f})"


def _by_seed(texts: Mapping[int, str]) -> str:
    """Return texts with the seeds that they hold for, those of equal text together."""
    seeds = {text: [str(seed) for seed in texts if texts[seed] == text] for text in texts.values()}
    return "; ".join(
        f"{text} (seed{'s' * (len(of) > 1)} {', '.join(of)})" for text, of in seeds.items()
    )


Remark = Callable[..., Iterator[str]]

REMARKS: Mapping[str, Remark] = {
    DARE.name: of_dare,
    ENCODERS.name: of_encoders,
    LEARNED_MERGES.name: of_learned,
}

PARTS: Mapping[str, str] = {
    DARE.name: "checkpoint",
    MERGES.name: "merged",
    ENCODERS.name: "checkpoint",
    LORA.name: "task",
}
"""Study -> the column over whose values its claims take means."""


def remarks(study: Study, records: DataFrame, *, fast: bool) -> Sequence[str]:
    """Return what there is to say of a study's records; ``fast`` as the records are."""
    said = list(REMARKS[study.name](records, fast=fast)) if study.name in REMARKS else []
    if study.name in PARTS and records["seed"].nunique() > 1:
        said += of_parts(study, PARTS[study.name], records)
    return said
