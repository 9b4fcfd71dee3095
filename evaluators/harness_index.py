"""Where the YAML of a task lies, by its name.

lm-eval indexes all its 14,687 names before it finds one of them, which takes 7 to 9 s in every
process. Here the files are searched for the line that names the task (0.3 s, or none for tasks
of the job's own directories); lm-eval's index is built only where that finds nothing, for groups,
tags and the nearest names. Start at :class:`TaskFiles`.
"""

from __future__ import annotations

import difflib
import functools
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import lm_eval.tasks
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Kind

from evaluators.harness_problems import TaskProblemError

STOCK_TASKS = Path(lm_eval.tasks.__file__).parent

# `task: name` at the start of a line, quoted or not; lists and mappings are groups.
_NAME_LINE = re.compile(
    rb"""^["']?task["']?[ \t]*:[ \t]*["']?([^\s"'#\[{]+)["']?[ \t]*(?:\#.*)?\r?$""", re.MULTILINE
)


class TaskFiles:
    """Finds the YAML of a task: in the job's directories first, then among lm-eval's own.

    Args:
        include_path: The job's directories with task YAMLs.
    """

    def __init__(self, include_path: Sequence[str]) -> None:
        self._include_path = list(include_path)
        # The directories that a person keeps tasks in are small: 2 ms for all of lm-eval's work.
        self.manager = TaskManager(include_path=self._include_path or None, include_defaults=False)

    def find(self, name: str) -> Path:
        """Return the YAML of a task.

        Raises:
            TaskProblemError: There is no such task, or it is a group of them.
        """
        entry = self.manager.task_index.get(name)
        if entry is None:
            path = stock_task_files().get(name)
            if path is not None:
                return path
            self.manager = TaskManager(include_path=self._include_path or None)
            entry = self.manager.task_index.get(name)
        if entry is None:
            raise TaskProblemError("", f"there is no such task{self._did_you_mean(name)}")
        if entry.kind not in (Kind.TASK, Kind.PY_TASK) or entry.yaml_path is None:
            members = sorted(entry.tags or self.manager.match_tasks([f"{name}_*"]))
            shown = ", ".join(f"`{member}`" for member in members[:4])
            shown += ", ..." * (len(members) > 4)
            raise TaskProblemError("", f"is a group of tasks; name its tasks one by one ({shown})")
        return Path(entry.yaml_path)

    def _did_you_mean(self, name: str) -> str:
        near = difflib.get_close_matches(name, self.manager.all_subtasks, n=3)
        if near:
            return "; did you mean " + " or ".join(f"`{match}`" for match in near) + "?"
        return "; add the directory of its YAML to `evaluation.include_path`"


@functools.cache
def stock_task_files() -> Mapping[str, Path]:
    """Map the names of lm-eval's tasks to their YAMLs, read as text.

    Of files that give the same name lm-eval takes the first by path, and so does this.
    """
    found: dict[str, Path] = {}
    paths = (
        Path(directory, file)
        for directory, _, files in os.walk(STOCK_TASKS)
        for file in files
        if file.endswith(".yaml")
    )
    for path in sorted(paths, key=Path.as_posix):
        if line := _NAME_LINE.search(path.read_bytes()):
            found.setdefault(line[1].decode(), path)
    return found
