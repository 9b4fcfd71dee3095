"""DARE on single specialists: how much of a task vector can be dropped, and what rescaling does."""

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import torch
from pandas import DataFrame
from safetensors.torch import load_file, save_file

from scripts.papers.bench import Bench, Lab
from scripts.papers.study import Claim, Figure, Record, Study, Table, mean_of
from scripts.papers.zoos import LONGER, NARROW, SKILL_SPECIALISTS, WIDE

DROPS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99)
FAST_DROPS = (0.0, 0.1, 0.9)
MASKS = 3


def measure(bench: Bench) -> list[Record]:
    """Score every specialist on its own skill, and the longer trained one, with parts dropped."""
    records: list[Record] = []
    for skill in SKILL_SPECIALISTS:
        records += _of_checkpoint(bench, skill, skill)
    records += _of_checkpoint(bench, LONGER.name, "math")
    return records


def _of_checkpoint(bench: Bench, name: str, skill: str) -> Iterator[Record]:
    drops = FAST_DROPS if bench.fast else DROPS
    task = f"zoo_{skill}"
    fixed: Record = {"checkpoint": name, "skill": skill, **delta_range(bench.zoo, name)}
    with bench.lab((name,), skills=(skill,)) as lab:
        base = lab.mean_scores(lab.recipe({}))[task]
        tuned = lab.mean_scores(lab.recipe({name: 1.0}))[task]
        for how, drop in product(("rescaled", "not rescaled", "by magnitude"), drops):
            score = _score(lab, name, how, drop, fast=bench.fast)
            yield {**fixed, "how": how, "p": drop, "score": score, "base": base, "tuned": tuned}
    zeros = bench.made(
        "zeros", bench.digest("base"), lambda out: write_zeros(bench.zoo / "base", out)
    )
    with bench.lab((name,), base=zeros, skills=(skill,)) as lab:
        how = "weights dropped"
        for drop in drops:
            score = _score(lab, name, "rescaled", drop, fast=bench.fast)
            yield {**fixed, "how": how, "p": drop, "score": score, "base": base, "tuned": tuned}


def _score(lab: Lab, name: str, how: str, drop: float, *, fast: bool) -> float:
    """Return the score of a checkpoint with a share dropped, the mean over random masks."""
    if how == "by magnitude":
        # TIES of one checkpoint: the smallest magnitudes are trimmed, and nothing is left to elect.
        recipe = lab.recipe({name: 1.0}, method="ties", drop_ratio=drop)
    else:
        recipe = lab.dropped(name, drop, rescale=how == "rescaled")
    (score,) = lab.report(recipe, masks=1 if fast else MASKS).values()
    return score


def delta_range(zoo: Path, name: str) -> dict[str, float]:
    """Return ``delta_median`` and ``delta_p99``: of |tuned - base| where it is not 0."""
    base = load_file(zoo / "base" / "model.safetensors")
    tuned = load_file(zoo / name / "model.safetensors")
    deltas = torch.cat([(tuned[key] - base[key]).abs().flatten() for key in base])
    deltas = deltas[deltas > 0]
    ordered = deltas.sort().values
    return {
        "delta_median": float(ordered[len(ordered) // 2]),
        "delta_p99": float(ordered[int(0.99 * len(ordered))]),
    }


def write_zeros(model: Path, out: Path) -> None:
    """Write a model of the same shapes whose tensors are zero: deltas from it are weights."""
    for file in model.iterdir():
        if file.suffix != ".safetensors":
            (out / file.name).write_bytes(file.read_bytes())
    tensors = load_file(model / "model.safetensors")
    save_file(
        {key: torch.zeros_like(tensor) for key, tensor in tensors.items()},
        out / "model.safetensors",
        metadata={"format": "pt"},
    )


def kept(records: DataFrame, **where: object) -> float:
    """Return the mean share of what tuning gained that is left: (score - base) / (tuned - base)."""
    chosen = records
    for column, wanted in where.items():
        chosen = chosen[chosen[column] == wanted]
    gained = chosen["tuned"] - chosen["base"]
    return float(((chosen["score"] - chosen["base"]) / gained).mean())


def _specialists(records: DataFrame) -> DataFrame:
    return records[records["checkpoint"].isin(SKILL_SPECIALISTS)]


def _of_width(records: DataFrame, width: int) -> DataFrame:
    return records[records["width"] == width]


def _narrow(records: DataFrame) -> DataFrame:
    return _specialists(_of_width(records, NARROW))


def _difference(records: DataFrame, p: float, first: str, second: str) -> float:
    return mean_of(records, how=first, p=p) - mean_of(records, how=second, p=p)


def _notes(records: DataFrame) -> Sequence[str]:
    lines = []
    for (width, name), part in records.groupby(["width", "checkpoint"]):
        lines.append(
            f"Width {width}, `{name}`: deltas of median {part['delta_median'].mean():.5f} and 99th "
            f"percentile {part['delta_p99'].mean():.4f}; score {part['tuned'].mean():.3f}, the "
            f"base's {part['base'].mean():.3f}."
        )
    return lines


DARE = Study(
    name="dare",
    title="DARE: dropping parts of one task vector",
    papers=("Yu et al., Language Models are Super Mario (DARE), arXiv:2311.03099",),
    how="""
Each specialist, and one checkpoint that was pre-trained further on stories (a much longer delta),
is scored on its own skill with a share p of its task vector dropped: at random and rescaled by
1/(1-p) (DARE), at random and not rescaled, the smallest magnitudes dropped (trimming as in TIES, no
rescaling), and with p of its weights dropped instead of its deltas (rescaled). Mean of three masks
where masks are random. The share of the gain that is kept is (score - base) / (tuned - base).""",
    measure=measure,
    checkpoints=(*SKILL_SPECIALISTS, LONGER.name),
    widths=(NARROW, WIDE),
    claims=(
        Claim(
            key="dare_p90_keeps",
            text="""Dropping 90 % of the deltas of a fine-tuned checkpoint at random, with
            rescaling, hardly changes its scores (abstract).""",
            measured="share of the gain kept at p = 0.9, rescaled, width 128; 0.9 counts as hardly",
            value=lambda r: kept(_narrow(r), how="rescaled", p=0.9),
            margin=0.9,
        ),
        Claim(
            key="rescaling_needed",
            text="Without rescaling the same drops cost far more (the paper's ablation).",
            measured="score at p = 0.9, rescaled minus not rescaled, width 128; far is 0.1",
            value=lambda r: _difference(_narrow(r), 0.9, "rescaled", "not rescaled"),
            margin=0.1,
            fast_above=0.2,
        ),
        Claim(
            key="random_beats_magnitude",
            text="""At high p, dropping the smallest magnitudes is worse than dropping at random and
            rescaling (the paper's comparison).""",
            measured="score at p = 0.9, random and rescaled minus by magnitude, width 128",
            value=lambda r: _difference(_narrow(r), 0.9, "rescaled", "by magnitude"),
            fast_above=0.05,
        ),
        Claim(
            key="weights_collapse",
            text="""Dropping 10 % of the tuned weights instead of deltas can lower scores
            drastically, even to 0 (abstract of version 1).""",
            measured="""score at p = 0.1, deltas dropped minus weights dropped, both rescaled, width
            128; drastic is 0.1""",
            value=lambda r: _difference(_narrow(r), 0.1, "rescaled", "weights dropped"),
            margin=0.1,
            fast_above=0.3,
        ),
        Claim(
            key="long_deltas_break",
            text="""Long deltas, those of continued pre-training, cannot be dropped like that
            (the paper's limits of DARE).""",
            measured="""share of the gain kept at p = 0.9, math specialist minus the checkpoint that
            was pre-trained further, width 128; half of the gain is broken""",
            margin=0.5,
            value=lambda r: (
                kept(_of_width(r, NARROW), checkpoint="math", how="rescaled", p=0.9)
                - kept(_of_width(r, NARROW), checkpoint=LONGER.name, how="rescaled", p=0.9)
            ),
            fast_above=0.5,
        ),
        Claim(
            key="wider_tolerates_more_p90",
            full_only=True,
            text="Larger models tolerate larger drop ratios (abstract of version 1).",
            measured="share of the gain kept at p = 0.9, rescaled, width 256 minus width 128",
            value=lambda r: (
                kept(_specialists(_of_width(r, WIDE)), how="rescaled", p=0.9)
                - kept(_narrow(r), how="rescaled", p=0.9)
            ),
        ),
        Claim(
            key="wider_tolerates_more_p99",
            full_only=True,
            text="Larger models tolerate larger drop ratios (abstract of version 1).",
            measured="share of the gain kept at p = 0.99, rescaled, width 256 minus width 128",
            value=lambda r: (
                kept(_specialists(_of_width(r, WIDE)), how="rescaled", p=0.99)
                - kept(_narrow(r), how="rescaled", p=0.99)
            ),
        ),
    ),
    tables=(Table("Scores by drop ratio", ("width", "checkpoint", "how"), "p", "score"),),
    figures=tuple(
        Figure(
            name=f"dare_{width}",
            title=f"A share p of a task vector dropped, width {width}",
            x="p",
            value="score",
            series="how",
            panel="checkpoint",
            label="score on its own skill",
            width=width,
        )
        for width in (NARROW, WIDE)
    ),
    notes=_notes,
)
