"""The page of results: for every study its tables over seeds, its figures, and what holds.

Every sentence under a table is made from the records; none is written by hand.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd
from pandas import DataFrame

from scripts.papers.remarks import remarks
from scripts.papers.study import CONFIDENCE, Judged, Study, Table, judge

PAGE = "papers.md"
FIGURES = "papers"
_INTRODUCTION = """
Language models of 1 to 4 million parameters (encoders of under 0.1 million), made by the command
below: a base and what is fine-tuned from it, one zoo per seed. Cells are means ± standard
deviations over seeds (no ± where there is one). A claim *holds* where the 95 % interval of the mean
over seeds (Student's t) lies above its margin, *does not hold* where it lies below, and is *not
decided* otherwise. Every claim is judged for itself: were all {count} exactly at their margins,
{chance:.1f} would hold by chance, and as many would not. What holds here holds for such models and
tasks; the papers' models are a thousand times larger."""


def judge_all(
    studies: Sequence[Study], records: Mapping[str, DataFrame], *, fast: bool = False
) -> dict[str, Judged]:
    """Return key -> claim with its values, of all studies; ``fast`` as the records are.

    Raises:
        ValueError: A claim is not a number in some seed.
    """
    return {
        claim.key: judge(claim, records[study.name])
        for study in studies
        for claim in study.claims
        if not (fast and claim.full_only)
    }


def page(
    studies: Sequence[Study],
    records: Mapping[str, DataFrame],
    *,
    command: str,
    machine: str,
    figures: Mapping[str, Sequence[Path]],
    seconds: float | None = None,
    fast: bool = False,
) -> str:
    """Return the page as Markdown.

    Args:
        studies: In order.
        records: Study -> its records.
        command: What was run.
        machine: Where.
        figures: Study -> files, relative to the page.
        seconds: How long measuring took by the clock, the sum of all cells, where it is known.
        fast: Whether the records are of ``--fast``.
    """
    judged = judge_all(studies, records, fast=fast)
    by_chance = len(judged) * (1 - CONFIDENCE) / 2
    time = (
        ""
        if seconds is None
        else f" Measuring took {seconds / 60:.0f} minutes, summed over cells, zoos not counted."
    )
    lines = [
        "# What the papers say, on models that are trained here",
        "",
        _flat(_INTRODUCTION.format(count=len(judged), chance=by_chance)),
        "",
        f"{machine}.{time}",
        "",
        "```bash",
        command,
        "```",
        "",
        *_summary(studies, judged),
    ]
    for study in studies:
        said = [
            *study.notes(records[study.name]),
            *remarks(study, records[study.name], fast=fast),
        ]
        shown = figures.get(study.name, ())
        lines += ["", *_section(study, records[study.name], judged, shown, said)]
    return "\n".join(lines).rstrip() + "\n"


def _summary(studies: Sequence[Study], judged: Mapping[str, Judged]) -> Iterator[str]:
    yield "| study | holds | does not hold | not decided |"
    yield "|---|---|---|---|"
    for study in studies:
        verdicts = [judged[c.key].verdict for c in study.claims if c.key in judged]
        counts = [verdicts.count(v) for v in ("holds", "does not hold", "not decided")]
        yield f"| {study.title} | " + " | ".join(map(str, counts)) + " |"


def _section(
    study: Study,
    records: DataFrame,
    judged: Mapping[str, Judged],
    figures: Sequence[Path],
    said: Sequence[str],
) -> Iterator[str]:
    yield f"## {study.title}"
    yield ""
    yield "; ".join(study.papers) + "."
    yield ""
    yield _flat(study.how)
    seeds = sorted({int(seed) for seed in records["seed"]})
    yield f"Seeds {', '.join(map(str, seeds))}."
    for table in study.tables:
        yield ""
        yield from table_lines(table, records)
    for file in figures:
        yield ""
        yield f"![{study.title}]({file.as_posix()})"
    yield ""
    yield from _claims([judged[c.key] for c in study.claims if c.key in judged])
    if left := [c.key for c in study.claims if c.key not in judged]:
        yield ""
        yield f"Not measured with `--fast`: {', '.join(left)}."
    if said:
        yield ""
        yield from (f"- {sentence}" for sentence in said)


def table_lines(table: Table, records: DataFrame) -> Iterator[str]:
    """Yield a table: first the mean of each seed's records, then mean ± sd over seeds."""
    keys = [*table.rows, table.column]
    shown = records.dropna(subset=[*keys, table.value])
    by_seed = shown.groupby([*keys, "seed"], sort=False)[table.value].mean()
    means = by_seed.groupby(keys, sort=False).mean().unstack(table.column)
    sds = by_seed.groupby(keys, sort=False).std(ddof=1).unstack(table.column)
    columns = list(means.columns)
    yield f"**{table.title}**"
    yield ""
    yield "| " + " | ".join([*table.rows, *(_heading(table.column, c) for c in columns)]) + " |"
    yield "|---" * (len(table.rows) + len(columns)) + "|"
    for index in means.index:
        labels = index if isinstance(index, tuple) else (index,)
        cells = [_cell(means.loc[index, c], sds.loc[index, c], table.digits) for c in columns]
        yield "| " + " | ".join([*map(str, labels), *cells]) + " |"


def _heading(name: str, value: object) -> str:
    return f"{name} {value:g}" if isinstance(value, float) else str(value)


def _cell(mean: float, sd: float, digits: int) -> str:
    if pd.isna(mean):
        return ""
    return f"{mean:.{digits}f}" + ("" if pd.isna(sd) else f" ± {sd:.{digits}f}")


def _claims(judged: Sequence[Judged]) -> Iterator[str]:
    yield "| claim | measured | by seed | mean (95 %) | margin | verdict |"
    yield "|---|---|---|---|---|---|"
    for one in judged:
        values = ", ".join(f"{value:+.3f}" for value in one.by_seed.values())
        interval = "" if math.isnan(one.low) else f" ({one.low:+.3f} to {one.high:+.3f})"
        text, measured = _flat(one.claim.text), _flat(one.claim.measured)
        yield (
            f"| {text} | {measured} | {values} | {one.mean:+.3f}{interval} | "
            f"{one.claim.margin:g} | **{one.verdict}** |"
        )


def _flat(text: str) -> str:
    """Return a text of several lines as one."""
    return " ".join(text.split())
