"""What differs between two jobs, key by key: an edited job is not resumed by mistake."""

import json
from collections.abc import Iterable, Mapping

from configs.errors import ConfigError, JobChangedError, Problem
from configs.racing import BEFORE
from configs.schema import OPERATIONAL_KEYS, JobConfig

# Mappings whose order means something: genes, columns of the front.
_ORDERED = frozenset({"models.checkpoints", "merge.groups", "objectives"})

RESUMABLE_KEYS = OPERATIONAL_KEYS - {"archive"}
"""What a resume may change; where the archive is, is said by the argument of whoever resumes."""


def may_change(key: str) -> bool:
    """Whether a key, dotted or not, may differ on resume."""
    return key.partition(".")[0] in RESUMABLE_KEYS


def refuse_unresumable(keys: Iterable[str], title: str) -> None:
    """Refuse overrides that would change what is searched.

    Raises:
        ConfigError: Named ``title``, with a problem per key that cannot change on resume.
    """
    allowed = ", ".join(sorted(RESUMABLE_KEYS))
    problems = [
        Problem(key, f"cannot change on resume; only {allowed} can")
        for key in keys
        if not may_change(key)
    ]
    if problems:
        raise ConfigError(title, problems)


def continued(archived: JobConfig, job: JobConfig, refusal: str) -> JobConfig:
    """Return a job that goes on with an archived one, as the search of that began.

    Raises:
        JobChangedError: Named ``refusal``: it searches something else.
    """
    job = _as_begun(archived, job)
    if changes := changed_keys(archived, job):
        raise JobChangedError(refusal, changes)
    return job


def _as_begun(archived: JobConfig, job: JobConfig) -> JobConfig:
    """Return a job without what its search began without.

    Where there was no such setting of ``search`` yet, a job that leaves it open, or to the
    program, means what it meant then.
    """
    sections = {}
    for name, before in BEFORE.items():
        began = getattr(archived.search, name).model_fields_set
        section = getattr(job.search, name)
        decided = set(section.model_fields_set)
        if section.sampling is not True:
            decided.discard("sampling")
        left_open = before.keys() - began - decided
        if left_open:
            update = {key: before[key] for key in left_open}
            sections[name] = section.model_copy(update=update)
    if not sections:
        return job
    return job.model_copy(update={"search": job.search.model_copy(update=sections)})


def changed_keys(old: JobConfig, new: JobConfig) -> list[Problem]:
    """Say what two jobs search differently.

    Keys that only say how long, where and on what a search runs may change on resume and are
    not compared (``configs.schema.JobConfig.searched``).

    Returns:
        One problem per changed key, dotted as in the job file, its message ``old -> new``; in
        the order of the schema. Empty when both describe the same search.
    """
    return _differences("", old.searched, new.searched)


def _differences(path: str, old: object, new: object) -> list[Problem]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return _of_mappings(path, old, new)
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [
            problem
            for index, pair in enumerate(zip(old, new, strict=True))
            for problem in _differences(f"{path}[{index}]", *pair)
        ]
    return [] if old == new else [Problem(path, f"{_shown(old)} -> {_shown(new)}")]


def _of_mappings(path: str, old: Mapping[str, object], new: Mapping[str, object]) -> list[Problem]:
    problems = []
    if path in _ORDERED and old.keys() == new.keys() and list(old) != list(new):
        problems.append(Problem(path, f"order {', '.join(old)} -> {', '.join(new)}"))
    for key in (*old, *(key for key in new if key not in old)):
        inner = f"{path}.{key}" if path else key
        if key not in new:
            problems.append(Problem(inner, f"{_shown(old[key])} -> (absent)"))
        elif key not in old:
            problems.append(Problem(inner, f"(absent) -> {_shown(new[key])}"))
        else:
            problems += _differences(inner, old[key], new[key])
    return problems


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
