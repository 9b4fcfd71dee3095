"""The arguments that several commands take, as typer's annotations, and what ``--set`` means."""

from pathlib import Path
from typing import Annotated

import typer

from configs.errors import ConfigError, Problem

JobFile = Annotated[Path, typer.Argument(metavar="JOB.yaml", help="The job file.")]
ArchivePlace = Annotated[
    str,
    typer.Argument(
        metavar="ARCHIVE", help="The archive: a file, or postgresql://USER@HOST/DB?search=NAME."
    ),
]
NewDirectory = Annotated[Path, typer.Option(metavar="DIR", help="Directory to create.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Plain = Annotated[bool, typer.Option("--plain", help="Plain lines instead of the live view.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the job; repeatable."),
]
Evaluations = Annotated[
    int | None, typer.Option("--evaluations", min=1, help="Override budget.evaluations.")
]
Prefer = Annotated[
    str | None,
    typer.Option("--prefer", metavar="NAME=W,...", help="Maximize this weighted mean."),
]
AtLeast = Annotated[
    str | None, typer.Option("--at-least", metavar="NAME=X,...", help="Smallest acceptable scores.")
]
Knee = Annotated[bool, typer.Option("--knee", help="Take the knee of the front.")]
Raw = Annotated[
    bool, typer.Option("--raw", help="Rank by raw search scores, not by the posterior.")
]
StartFrom = Annotated[
    str | None,
    typer.Option("--from", metavar="ARCHIVE", help="Begin with what another search learnt."),
]

RecipeId = Annotated[
    str | None,
    typer.Option("--id", metavar="ID", help="Of an archive: recipe id or a prefix of it."),
]
Dtype = Annotated[str | None, typer.Option(help="Another data type: float32, bfloat16 or float16.")]
ShardSize = Annotated[str, typer.Option(help="Such as 500MB or 5GB.")]
ModelPlaces = Annotated[
    list[Path] | None,
    typer.Option(
        "--source",
        metavar="DIR",
        help="Where a recipe's models are: a checkpoint, or a directory of some; repeatable.",
    ),
]


def read_overrides(settings: list[str] | None, evaluations: int | None = None) -> dict[str, object]:
    """Read ``--set`` options as dotted keys with YAML values.

    Raises:
        ConfigError: An option is not KEY=VALUE, or its value is not YAML.
    """
    import yaml

    overrides: dict[str, object] = {}
    problems = []
    for setting in settings or []:
        key, equals, text = setting.partition("=")
        if not key or not equals:
            problems.append(Problem("--set", f"expected KEY=VALUE, found `{setting}`"))
            continue
        try:
            overrides[key.strip()] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            reason = str(error).splitlines()[0]
            problems.append(Problem(f"--set {key}", f"`{text}` is not YAML: {reason}"))
    if problems:
        raise ConfigError("the command line cannot be read", problems)
    if evaluations is not None:
        overrides["budget.evaluations"] = evaluations
    return overrides
