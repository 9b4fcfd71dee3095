"""Which tensors the groups of a job hold: each must be in exactly one."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from configs.errors import Problem
from configs.groups import compile_groups
from configs.recipe import Group
from configs.schema import Merge
from workers.shard_header import TensorEntry

# Enough to recognize the pattern.
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class GroupSize:
    """What a group holds; ``share`` is that of all parameters that are merged, in [0, 1]."""

    name: str
    num_tensors: int
    num_parameters: int
    share: float


def measure_groups(entries: Collection[TensorEntry], merge: Merge) -> tuple[GroupSize, ...]:
    """Count what each group of a job holds of some tensors; not floating ones are in none."""
    floating = [entry for entry in entries if entry.is_floating]
    total = sum(entry.numel for entry in floating)
    sizes = []
    for group in _groups(merge):
        held = [entry.numel for entry in floating if group.holds(entry.name)]
        share = sum(held) / total if total else 0.0
        sizes.append(GroupSize(group.name, len(held), sum(held), share))
    return tuple(sizes)


def group_problems(entries: Collection[TensorEntry], merge: Merge) -> list[Problem]:
    """Say which tensors are in no group, and which are in several."""
    groups = _groups(merge)
    homeless: list[str] = []
    shared: list[str] = []
    for entry in entries:
        names = [group.name for group in groups if group.holds(entry.name)]
        if entry.is_floating and not names:
            homeless.append(f"`{entry.name}`")
        elif entry.is_floating and len(names) > 1:
            shared.append(f"`{entry.name}` ({', '.join(names)})")
    problems: list[Problem] = []
    if homeless:
        problems.append(
            Problem(
                "merge.groups",
                f"{len(homeless)} tensors are in no group: {some(homeless)}. "
                "Add a group or a rule for them, such as `others: [rest]`",
            )
        )
    if shared:
        problems.append(
            Problem(
                "merge.groups",
                f"{len(shared)} tensors are in more than one group: "
                f"{some(shared)}. Make the rules exclude each other",
            )
        )
    return problems


def group_warnings(sizes: Sequence[GroupSize], merge: Merge) -> Iterator[str]:
    """Say which groups hold nothing."""
    for size in sizes:
        if size.num_tensors:
            continue
        rules = merge.groups[size.name]
        tied = ": a tied head is part of the embeddings"
        why = tied if any(rule.kind == "head" for rule in rules) else ""
        yield f"group `{size.name}` holds no tensor; its genes change nothing{why}"


def some(items: Sequence[str]) -> str:
    """List the first few of many things in a message."""
    rest = len(items) - _SHOWN
    return "; ".join(items[:_SHOWN]) + (f"; and {rest} more" if rest > 0 else "")


def _groups(merge: Merge) -> list[Group]:
    groups = compile_groups(merge.groups)
    return [Group(name=name, patterns=patterns) for name, patterns in groups.items()]
