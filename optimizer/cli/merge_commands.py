"""The commands about single recipes: merge (without a search) and recipe (in either language)."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table

from configs.errors import ConfigError, Problem
from configs.recipe import MergeRecipe
from optimizer.cli.export_commands import dtype_of, size_in_bytes
from optimizer.cli.read_commands import print_json, stdout_console

FORMATS = ("json", "mergekit")


def merge(
    path: Path,
    *,
    out: Path,
    directories: Sequence[Path],
    dtype: str | None,
    max_shard_size: str,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Make one merge of a recipe or a mergekit file."""
    max_shard_bytes = size_in_bytes(max_shard_size)
    wanted = dtype_of(dtype)
    from optimizer.publish.merge_file import plan_merge, write_merge
    from optimizer.publish.recipe_file import read_recipe_file
    from workers.checkpoint_writer import refuse_used

    # Told before anything is read.
    refuse_used(out.expanduser().absolute())
    plan = plan_merge(read_recipe_file(path, directories=directories, dtype=wanted))
    for note in plan.notes:
        sys.stderr.write(f"note: {note}\n")
    recipe, pool = plan.file.recipe, plan.pool
    record: dict[str, object] = {
        "directory": str(out.expanduser().absolute()),
        "recipe_id": recipe.recipe_id,
    }
    if not dry_run:
        done = write_merge(plan, out, max_shard_bytes=max_shard_bytes)
        record |= {
            "weights_digest": done.weights_digest,
            "size_bytes": done.size_bytes,
            "licence_warning": done.licence_warning or None,
        }
        if done.licence_warning:
            sys.stderr.write(f"note: {done.licence_warning}\n")
        if not as_json:
            sys.stdout.write(f"{done.weights_digest}  {done.directory}\n")
    reads = {
        str(source.directory): source.digest
        for source in (*plan.file.sources.everything, *plan.file.sources.coefficients)
    }
    record |= {
        "recipe": recipe.model_dump(mode="json"),
        "reads": reads,
        "bytes_read": pool.bytes_read,
        "bytes_written": pool.bytes_written,
        "notes": list(plan.notes),
    }
    if as_json:
        print_json(record)
    elif dry_run:
        _print_plan(recipe, record, reads)


def _print_plan(
    recipe: MergeRecipe, record: Mapping[str, object], reads: Mapping[str, str]
) -> None:
    from optimizer.publish.merge_file import recipe_rows

    console = stdout_console()
    options = "".join(f", {key} {value:g}" for key, value in recipe.options.items())
    console.print(f"{recipe.method}{options} in {recipe.dtype}, recipe {recipe.recipe_id[:10]}")
    table = Table("checkpoint", "group", "weight", "drop ratio")
    for row in recipe_rows(recipe):
        table.add_row(*row)
    console.print(table)
    for place, digest in reads.items():
        console.print(f"reads  {place} ({digest[:12]})", markup=False, soft_wrap=True)
    megabytes = [round(int(str(record[key])) / 1e6, 1) for key in ("bytes_read", "bytes_written")]
    console.print(f"       {megabytes[0]:g} MB")
    console.print(f"writes {record['directory']}", markup=False, soft_wrap=True)
    console.print(f"       {megabytes[1]:g} MB of weights")


def recipe(
    file: str,
    *,
    recipe_id: str | None,
    directories: Sequence[Path],
    form: str,
    out: Path | None,
) -> None:
    """Print a recipe of an archive or of a file, as JSON or for mergekit."""
    if form not in FORMATS:
        raise _wrong("--format", f"`{form}` is no format; there are {', '.join(FORMATS)}")
    if out is not None and out.exists():
        raise _wrong("--out", f"{out} already exists; choose another name")
    from optimizer.archive.sqlite import is_sqlite

    path = Path(file)
    # What is no file at all is refused by who reads it.
    if "://" in file or (path.is_file() and is_sqlite(path)):
        if directories:
            raise _wrong("--source", "an archive knows its models; leave it out")
        text = _of_archive(file, recipe_id, form)
    elif recipe_id is not None:
        raise _wrong("--id", f"{path} is no archive: it holds one recipe; leave --id out")
    else:
        text = _of_file(path, directories, form)
    if out is None:
        sys.stdout.write(text)
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise _wrong("--out", f"{out} cannot be written: {error.strerror}") from error
    sys.stdout.write(f"{out}\n")


def _of_archive(place: str, recipe_id: str | None, form: str) -> str:
    from optimizer.archive.archive import Archive
    from optimizer.publish.export import recipe_json
    from optimizer.publish.mergekit_export import mergekit_yaml
    from optimizer.publish.recipe_file import read_layout, spelled_as
    from optimizer.results.select import choose

    with Archive.open(place) as archive:
        choice = choose(archive, recipe_id=recipe_id)
        if form == "json":
            return recipe_json(archive, choice)
        named = [*([archive.job.models.base] if archive.job.models.base else [])]
        named += archive.job.models.checkpoints.values()
        texts = {
            found.digest: spelled_as(source, found)
            for source, found in zip(named, archive.sources.everything, strict=True)
        }
        layout, _ = read_layout(archive.sources)
        return mergekit_yaml(choice.candidate.recipe, layout, texts)


def _of_file(path: Path, directories: Sequence[Path], form: str) -> str:
    from optimizer.publish.merge_file import recipe_record
    from optimizer.publish.mergekit_export import mergekit_yaml
    from optimizer.publish.recipe_file import read_layout, read_recipe_file

    file = read_recipe_file(path, directories=directories)
    for note in file.notes:
        sys.stderr.write(f"note: {note}\n")
    if form == "json":
        return json.dumps(recipe_record(file), indent=2, ensure_ascii=False) + "\n"
    layout, _ = read_layout(file.sources)
    return mergekit_yaml(file.recipe, layout, file.spelled)


def _wrong(flag: str, message: str) -> ConfigError:
    return ConfigError("the command line cannot be read", [Problem(flag, message)])
