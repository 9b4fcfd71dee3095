"""The command ``learn``: checks, learns and writes a merge, and shows how the loss falls."""

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from configs.load import load_job
from optimizer.cli.read_commands import print_json
from optimizer.cli.running import say, stderr_console

if TYPE_CHECKING:
    from optimizer.learning.plan import LearningPlan
    from workers.learning.descent import Step

# Lines where there is no terminal.
_LINES = 10


def learn(
    job_path: Path,
    method: str,
    *,
    out: Path,
    data: Sequence[str],
    options: Mapping[str, object],
    max_tokens: int | None,
    overrides: Mapping[str, object],
    plain: bool,
    as_json: bool,
) -> None:
    """Learn a merge and write its directory."""
    from optimizer.learning.directory import write_learned
    from optimizer.learning.learn import learn_merge
    from optimizer.learning.plan import plan_learning

    console = stderr_console()
    plan = plan_learning(
        load_job(job_path, overrides),
        method,
        out,
        options=options,
        data=data,
        max_tokens=max_tokens,
        announce=partial(say, console, style="dim"),
    )
    for warning in plan.pool.warnings:
        say(console, f"warning: {warning}", style="yellow")
    for line in _data_lines(plan):
        say(console, line, style="dim")
    with _shown(console, plain=plain) as on_step:
        learned = learn_merge(plan, on_step=on_step)
    recipe = write_learned(plan, learned)
    if as_json:
        ends = {name: [values[0], values[-1]] for name, values in learned.losses.items()}
        print_json(
            {
                "directory": str(plan.out_dir),
                "recipe_id": recipe.recipe_id,
                "recipe": recipe.model_dump(mode="json"),
                "seconds": round(learned.seconds, 3),
                "losses": {name: {"first": a, "last": b} for name, (a, b) in ends.items()},
            }
        )
        return
    sys.stdout.write(f"{recipe.recipe_id}  {plan.out_dir}\n")
    say(console, f"\nmerge it: mergefront merge {plan.out_dir / 'recipe.json'} --out DIR")


def _data_lines(plan: "LearningPlan") -> Iterator[str]:
    for name, origins in plan.origins.items():
        texts = plan.texts.by_checkpoint[name]
        labels = ", ".join(origin.label for origin in origins)
        yield f"{name}: {len(texts)} texts, {sum(map(len, texts))} tokens ({labels})"


@contextmanager
def _shown(console: Console, *, plain: bool) -> Iterator[Callable[["Step"], None]]:
    """Show steps on standard error: a bar on a terminal, some lines elsewhere."""
    if plain or not console.is_terminal:
        yield partial(_print_some, console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[loss]}"))
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
        task = progress.add_task("learning", total=None, loss="loading")

        def on_step(step: "Step") -> None:
            progress.update(task, total=step.total, completed=step.number, loss=_text_of(step))

        yield on_step


def _print_some(console: Console, step: "Step") -> None:
    every = max(1, math.ceil(step.total / _LINES))
    if step.number in (1, step.total) or step.number % every == 0:
        say(console, f"step {step.number}/{step.total}: {_text_of(step)}")


def _text_of(step: "Step") -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in step.losses.items())
