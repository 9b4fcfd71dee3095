"""How benchmarks print what they measured."""

import json
from collections.abc import Mapping


def print_report(report: Mapping[str, object], *, as_json: bool) -> None:
    """Print one JSON value, or a line per key; floats are rounded to four digits after the point.

    Args:
        report: Key with its unit -> value, or a report of its own.
        as_json: For programs.
    """
    rounded = {key: _rounded(value) for key, value in report.items()}
    if as_json:
        print(json.dumps(rounded))
        return
    width = max(map(len, rounded), default=0)
    for key, value in rounded.items():
        text = json.dumps(value, indent=2) if isinstance(value, dict) else str(value)
        print(f"{key:{width}} {text}")


def _rounded(value: object) -> object:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, Mapping):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(part) for part in value]
    return value
