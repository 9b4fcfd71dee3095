"""The command doctor: what works on this machine, and what to do about the rest."""

from pathlib import Path

import typer
from rich.text import Text

from optimizer.cli.read_commands import print_json, stdout_console
from optimizer.preflight.doctor import examine

_MARKS = {"ok": ("ok", "green"), "note": ("note", "yellow"), "fault": ("FAULT", "bold red")}


def doctor(directory: Path, *, quick: bool, as_json: bool) -> None:
    """Look at everything and print it; exit code 1 where no search can run."""
    console = stdout_console()
    findings = []
    for finding in examine(directory, quick=quick):
        findings.append(finding)
        if as_json:
            continue
        mark, style = _MARKS[finding.status]
        line = Text.assemble((f"{mark:<6}", style), (f"{finding.name:<14}", "bold"), finding.found)
        if finding.advice:
            line.append(f"\n{'':20}{finding.advice}", style="dim")
        console.print(line, soft_wrap=True)
    works = all(finding.status != "fault" for finding in findings)
    if as_json:
        print_json({"works": works, "findings": [finding.record() for finding in findings]})
    if not works:
        raise typer.Exit(1)
