"""The page of the command line, from typer's own generator."""

import re
import subprocess
import sys

from configs import errors
from configs.errors import INTERRUPTED, TERMINATED

_HEAD = """\
# Command line

Results go to standard output; progress, notes and errors to standard error. `--json` prints
results for programs.

| exit code | because of |
|---|---|
{codes}

"""
_GENERATOR = (*(sys.executable, "-m", "typer", "optimizer.cli.app", "utils", "docs"), "--name")
# Its lines are cut at 45 characters; the page has a table of contents instead.
_LIST_OF_COMMANDS = re.compile(r"\*\*Commands\*\*:\n\n(?:\* .*\n)+\n?")
_HELP = re.compile(r"\* `--help`: .*\n")


def commands_page() -> str:
    """Return the page in MyST.

    Raises:
        subprocess.CalledProcessError: typer cannot describe the command.
    """
    done = subprocess.run([*_GENERATOR, "mergefront"], capture_output=True, text=True, check=True)
    text = _HELP.sub("", _LIST_OF_COMMANDS.sub("", done.stdout))
    # One level below the page's title: commands, and those of `archive` below it.
    body = text.replace("# `mergefront`\n", "## `mergefront`\n", 1)
    return _HEAD.format(codes="\n".join(_exit_codes())) + body


def _exit_codes() -> list[str]:
    """Return the rows of the table: code, and the error that it stands for."""
    rows = {
        0: "nothing: it worked",
        1: "a check that was asked for fails: something differs, or could not be converted",
        INTERRUPTED: "Ctrl-C: `mergefront resume` goes on with a search",
        TERMINATED: "SIGTERM: the same",
    }
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    for kind in kinds:
        if issubclass(kind, errors.MergefrontError) and "exit_code" in vars(kind):
            first_line = str(kind.__doc__).splitlines()[0]
            rows.setdefault(kind.exit_code, re.split(r"[;.]", first_line)[0].replace("``", "`"))
    return [f"| {code} | {why} |" for code, why in sorted(rows.items())]
