"""The jobs of the search benchmark on real merges: which checkpoints, which items, which ranges."""

from pathlib import Path

from configs.evaluation import SplitSizes
from configs.schema import JobConfig
from scripts.bench.merge_lab import Kind

ROOT = Path(__file__).resolve().parents[2]
SKILLS = ("instruct", "code", "math")
METRICS = {"instruct": "constraint_acc", "code": "pass_at_1", "math": "exact_match"}
POOLS: dict[str, tuple[str, ...]] = {
    "zoo3": SKILLS,
    "zoo5": (*SKILLS, "generalist_a", "generalist_b"),
}
"""Name of a pool -> its checkpoints: the specialists, and those with the two generalists."""

SPLITS = SplitSizes(search=64, select=128, report=128)
COMPANION = "target_bits_per_byte"


def zoo_job(
    zoo: Path,
    pool: str,
    *,
    kind: Kind = "generate",
    companion: bool = False,
    splits: SplitSizes = SPLITS,
    **changes: object,
) -> JobConfig:
    """Return the job of a pool: three skills, free weights, drops up to 0.9.

    Args:
        zoo: Directory that ``scripts/make_zoo.py --generalists`` made.
        pool: One of ``POOLS``.
        kind: ``likelihood`` scores the bits per byte of the reference answers instead of texts.
        companion: Whether that stands beside the scores.
        splits: Items per skill.
        changes: Sections of the job that differ.
    """
    metric = METRICS if kind == "generate" else dict.fromkeys(SKILLS, COMPANION)
    content: dict[str, object] = {
        "name": pool,
        "models": {
            "base": str(zoo / "base"),
            "checkpoints": {name: str(zoo / name) for name in POOLS[pool]},
        },
        "objectives": {
            skill: [{"task": f"zoo_{skill}", "metric": metric[skill], "companion": companion}]
            for skill in SKILLS
        },
        "evaluation": {
            "include_path": [str(ROOT / "evaluators/tasks/zoo")],
            "data_dir": str(zoo),
            "splits": splits,
            "allow_code_execution": True,
        },
        "archive": str(zoo / "archive.sqlite"),
    }
    return JobConfig.model_validate(content | changes)
