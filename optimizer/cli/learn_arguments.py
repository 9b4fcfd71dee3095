"""The arguments of ``learn``; what it does is in ``optimizer.cli.learn_commands``."""

from typing import Annotated

import typer

from optimizer.cli.guard import registered_on
from optimizer.cli.options import AsJson, JobFile, NewDirectory, Plain, Settings, read_overrides


def learn(
    *,
    job: JobFile,
    method: Annotated[str, typer.Argument(metavar="METHOD", help="dam or adamerging.")],
    out: NewDirectory,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CHECKPOINT=OBJECTIVE|FILE",
            help="A checkpoint's own texts: an objective, JSONL with `text` or `prompt`, or plain "
            "lines; repeatable. Default: the objective of its name, else all.",
        ),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(help="Most tokens of a text; of longer prompts the end. Default: 256."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Steps of gradient descent. Default: 300.")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate of Adam. Default: 0.001.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Texts per batch. Default: 8.")] = None,
    seed: Annotated[int | None, typer.Option(help="Default: the job's.")] = None,
    init: Annotated[
        float | None,
        typer.Option(help="What coefficients begin with. Default: 1/N (dam), 0.3 (adamerging)."),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="dam: of the distributions compared. Default: 2.")
    ] = None,
    similarity: Annotated[
        float | None,
        typer.Option(help="dam: weight of the cosine between checkpoints. Default: 0.01."),
    ] = None,
    l1: Annotated[float | None, typer.Option(help="dam: weight of magnitudes. Default: 0.")] = None,
    l2: Annotated[float | None, typer.Option(help="dam: weight of squares. Default: 0.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="dam: of AdamW. Default: 0.")] = None,
    granularity: Annotated[
        str | None,
        typer.Option(help="adamerging: a weight per `layer` or per `task`. Default: layer."),
    ] = None,
    positions: Annotated[
        str | None,
        typer.Option(
            help="adamerging: entropy at tokens that the merge has `generated`, at the `last` of "
            "the prompt, or at `all`. Default: generated."
        ),
    ] = None,
    new_tokens: Annotated[
        int | None, typer.Option(help="adamerging: most tokens generated per text. Default: 16.")
    ] = None,
    settings: Settings = None,
    plain: Plain = False,
    as_json: AsJson = False,
) -> None:
    """Learn a merge on texts without answers, as a baseline or to merge."""
    from optimizer.cli import learn_commands

    learn_commands.learn(
        job,
        method,
        out=out,
        data=data or [],
        options={
            "steps": steps,
            "lr": lr,
            "batch_size": batch_size,
            "seed": seed,
            "init": init,
            "temperature": temperature,
            "similarity": similarity,
            "l1": l1,
            "l2": l2,
            "weight_decay": weight_decay,
            "granularity": granularity,
            "positions": positions,
            "new_tokens": new_tokens,
        },
        max_tokens=max_tokens,
        overrides=read_overrides(settings),
        plain=plain,
        as_json=as_json,
    )


def add_commands(app: typer.Typer) -> None:
    """Register the command."""
    registered_on(app)(learn)
