"""The command export, and the options of all commands that write a checkpoint.

It takes no lock and may run beside the search that writes the archive.
"""

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import typer
from rich.console import Console

from configs.errors import ConfigError, Problem
from configs.schema import DtypeName
from optimizer.archive.archive import Archive
from optimizer.cli.read_commands import print_json
from optimizer.results import front_choice

if TYPE_CHECKING:
    from optimizer.publish.export import Exported
    from optimizer.publish.rescore import OtherDtype
    from optimizer.publish.verify_export import Verification
    from optimizer.results.select import Choice

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def export(
    place: str,
    *,
    out: Path,
    prefer: str | None,
    at_least: str | None,
    knee: bool,
    recipe_id: str | None,
    candidate: int | None,
    chosen_by: str | None,
    dtype: str | None,
    score: bool,
    verify: bool,
    gguf: bool,
    max_shard_size: str,
    as_json: bool,
) -> None:
    """Choose a merge and write it as a checkpoint directory, in another dtype where asked."""
    from optimizer.publish import gguf_check
    from optimizer.publish.export import export as write_export
    from optimizer.publish.rescore import rescored_record
    from optimizer.results.select import choose, recorded_choice
    from workers.checkpoint_writer import refuse_used

    wishes = numbers("--prefer", prefer)
    floors = numbers("--at-least", at_least)
    wanted = dtype_of(dtype)
    max_shard_bytes = size_in_bytes(max_shard_size)
    if score and wanted is None:
        raise _wrong(
            "--score", "needs --dtype: what a search made, it scored (`mergefront report`)"
        )
    has_wish = knee or any(wish is not None for wish in (prefer, at_least, recipe_id))
    _refuse_two_choices(candidate, chosen_by, has_wish=has_wish)
    # Told before anything is scored.
    if gguf:
        gguf_check.require_gguf()
    refuse_used(out.expanduser().absolute())
    with Archive.open(place) as archive:
        if candidate is not None:
            choice = recorded_choice(archive, candidate, chosen_by)
        else:
            choice = choose(archive, prefer=wishes, floors=floors, knee=knee, recipe_id=recipe_id)
        if verify and wanted not in (None, choice.candidate.recipe.dtype):
            raise _wrong("--verify", "compares with recorded scores, so leave --dtype out")
        if choice.split == "search":
            _note(
                "no merge was scored on held-out items yet, so the scores of the search decide, "
                "which flatter what the search picked"
            )
        other = None if wanted is None else _other_dtype(archive, choice, wanted, score=score)
        done = write_export(archive, choice, out, other=other, max_shard_bytes=max_shard_bytes)
        if done.licence_warning:
            _note(done.licence_warning)
        checked = _verified(archive, done) if verify else None
    converts = gguf_check.check_gguf(done.directory) if gguf else None
    if as_json:
        print_json(
            {
                "directory": str(done.directory),
                "recipe_id": done.recipe_id,
                "candidate": choice.candidate.index,
                "rule": choice.rule,
                "weights_digest": done.weights_digest,
                "size_bytes": done.size_bytes,
                "licence_warning": done.licence_warning or None,
                **({} if checked is None else {"verification": checked.record()}),
                **({} if converts is None else {"gguf": converts.record()}),
                **({} if other is None else rescored_record(other)),
            }
        )
    else:
        sys.stderr.write(f"recipe {done.recipe_id[:10]} ({choice.rule})\n")
        sys.stdout.write(f"{done.directory}\n")
    if converts is not None:
        sys.stderr.write("".join(f"{line}\n" for line in converts.lines))
    if not (checked is None or checked.is_equal) or not (converts is None or converts.is_ready):
        raise typer.Exit(1)


def _refuse_two_choices(candidate: int | None, chosen_by: str | None, *, has_wish: bool) -> None:
    if candidate is not None and has_wish:
        others = "--prefer, --at-least, --knee and --id"
        raise _wrong("--candidate", f"names one merge; leave {others} out")
    if chosen_by is not None and candidate is None:
        raise _wrong("--chosen-by", "says how --candidate was chosen, which is missing")


def _verified(archive: Archive, done: "Exported") -> "Verification":
    """Score what was written by stock lm-eval, and say on standard error what came of it."""
    from optimizer.publish.verify_export import verify

    _note(f"scoring {done.directory} with stock lm-eval")
    found = verify(archive, done.directory)
    sys.stderr.write("".join(f"{line}\n" for line in found.lines))
    return found


def _other_dtype(
    archive: Archive, choice: "Choice", dtype: DtypeName, *, score: bool
) -> "OtherDtype | None":
    """Return the merge in a dtype, scored where asked, or None where it has that already."""
    from optimizer.publish.rescore import in_dtype, render_rescored, rescore

    searched = choice.candidate.recipe.dtype
    other = in_dtype(choice, dtype)
    if other is None:
        _note(f"the search made this merge in {dtype}; the recorded scores are its own")
    elif not score:
        _note(f"scored was {searched}; in {dtype} this merge has no scores without --score")
    else:
        other = rescore(archive, choice, other, announce=_note)
        if other.rescored is not None:
            table = render_rescored(other.rescored, dtype, searched, archive.job.preference)
            Console(stderr=True, highlight=False).print(table)
        _note("these scores go into README.md and recipe.json, and not into the archive")
    return other


def _note(text: str) -> None:
    sys.stderr.write(f"note: {text}\n")


def dtype_of(text: str | None) -> DtypeName | None:
    """Read the name of a data type; None stays None.

    Raises:
        ConfigError: Merges cannot have it.
    """
    known: tuple[DtypeName, ...] = get_args(DtypeName)
    found = next((name for name in known if name == text), None)
    if found is None and text is not None:
        raise _wrong("--dtype", f"must be {', '.join(known)}; found `{text}`")
    return found


def numbers(flag: str, text: str | None) -> dict[str, float] | None:
    """Read ``name=number,name=number``.

    Raises:
        ConfigError: It is something else.
    """
    if text is None:
        return None
    return front_choice.numbers(text.split(","), flag, "the command line cannot be read")


def size_in_bytes(text: str) -> int:
    """Read a size such as ``5GB`` or ``500 MiB``.

    Raises:
        ConfigError: It is none.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]i?B|)\s*", text, re.IGNORECASE)
    size = int(float(found[1]) * _UNITS[found[2].upper()]) if found else 0
    if size < 1:
        raise _wrong("--max-shard-size", f"expected a size such as 500MB or 5GB, found `{text}`")
    return size


def _wrong(flag: str, message: str) -> ConfigError:
    return ConfigError("the command line cannot be read", [Problem(flag, message)])
