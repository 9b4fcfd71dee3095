"""The command init: asks for what a job needs, or takes it from flags, and writes the job file."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import typer

from configs.errors import ConfigError, Problem

_CODE_TASKS = ("humaneval", "mbpp")


@dataclass(frozen=True, slots=True)
class InitFlags:
    """What the command line says; empty where it says nothing."""

    base: str | None
    checkpoints: Sequence[str]
    objectives: Sequence[str]
    data_dir: str | None
    include_path: Sequence[str]
    name: str | None
    archive: str | None
    runs_code: bool
    force: bool


def init(path: Path, flags: InitFlags) -> None:
    """Write a job file, and print its name."""
    from optimizer.preflight.draft import Wishes, draft_job, render_draft

    if path.exists() and not flags.force:
        # Before anything is asked.
        raise ConfigError.single(str(path), "is there already; choose another name, or --force")
    asks = sys.stdin.isatty() and not (flags.checkpoints and flags.objectives)
    base, checkpoints, objectives = flags.base, flags.checkpoints, flags.objectives
    if asks:
        base = base or _ask("Base model (directory or hub id; empty: none)")
        checkpoints = checkpoints or _ask_several("Checkpoint as NAME=PLACE")
        objectives = objectives or _ask_several("Objective as NAME=TASK, e.g. math=gsm8k")
    problems = _problems(checkpoints, objectives)
    pairs = {flag: _pairs(flag, texts, problems) for flag, texts in
             (("--checkpoint", checkpoints), ("--objective", objectives))}  # fmt: skip
    if len(dict(pairs["--checkpoint"])) < len(pairs["--checkpoint"]):
        problems.append(Problem("--checkpoint", "a name is used twice; give each its own"))
    if problems:
        raise ConfigError("a job cannot be drafted", problems)
    name = flags.name or path.stem
    tasks = {task.partition(":")[0] for _, task in pairs["--objective"]}
    wishes = Wishes(
        name=name,
        base=base or None,
        checkpoints=dict(pairs["--checkpoint"]),
        objectives=pairs["--objective"],
        archive=flags.archive or f"runs/{path.stem}/archive.sqlite",
        data_dir=flags.data_dir,
        include_path=flags.include_path,
        runs_code=flags.runs_code or not tasks.isdisjoint(_CODE_TASKS),
    )
    text = render_draft(draft_job(wishes))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError.single(str(path), f"cannot be written: {error.strerror}") from error
    sys.stderr.write(f"read it, then: mergefront check {path}\n")
    sys.stdout.write(f"{path}\n")


def _problems(checkpoints: Sequence[str], objectives: Sequence[str]) -> list[Problem]:
    problems = []
    if not checkpoints:
        problems.append(Problem("--checkpoint", "name at least one: --checkpoint math=PLACE"))
    if not objectives:
        problems.append(Problem("--objective", "name at least one: --objective math=gsm8k"))
    return problems


def _pairs(flag: str, texts: Sequence[str], problems: list[Problem]) -> list[tuple[str, str]]:
    found = []
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not (name and equals and value):
            problems.append(Problem(flag, f"expected NAME=VALUE, found `{text}`"))
        found.append((name, value))
    return found


def _ask(question: str) -> str:
    return str(typer.prompt(question, default="", show_default=False, err=True)).strip()


def _ask_several(question: str) -> list[str]:
    answers: list[str] = []
    while answer := _ask(question if not answers else "  another (empty: no more)"):
        answers.append(answer)
    return answers
