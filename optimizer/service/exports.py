"""Exports: a process writes one, its directory is handed out as a tar while it is read.

Each has a directory beside the archive: what was asked for, the record of its process, and the
checkpoint, which appears whole or not at all. So a finished one is found again by any service.
"""

import re
import secrets
import shutil
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optimizer.archive.archive import Archive
from optimizer.results.select import Choice, choose
from optimizer.service.detached import write_whole
from optimizer.service.errors import ConflictError, NotFoundError
from optimizer.service.models import ExportAnswer, ExportRequest, ExportState
from optimizer.service.processes import DetachedProcess, command_line, read_record
from optimizer.service.runner import Runner
from optimizer.service.search_files import SearchFiles
from optimizer.service.searches import Searches

_ID = re.compile(r"[0-9a-f]{8}")
_WANTED = "export.json"
_CHUNK = 1 << 20
_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class Tar:
    """A directory as a tar: its size in bytes, and its content piece by piece."""

    name: str
    size_bytes: int
    chunks: Iterator[bytes]


class Exports:
    """Writes and finds the exports of searches."""

    def __init__(self, searches: Searches, runner: Runner) -> None:
        self._searches = searches
        self._runner = runner

    def all(self, files: SearchFiles) -> list[ExportAnswer]:
        """Return the exports of a search, the newest first."""
        found = [self._read(files, path) for path in files.exports.glob("*") if path.is_dir()]
        known = [export for export in found if export is not None]
        return sorted(known, key=lambda export: export.started_at, reverse=True)

    def find(self, files: SearchFiles, key: str) -> ExportAnswer:
        """Return one export.

        Raises:
            NotFoundError: There is none of that id.
        """
        found = self._read(files, files.exports / key) if _ID.fullmatch(key) else None
        if found is None:
            raise NotFoundError(f"search `{files.key}` has no export `{key[:100]}`")
        return found

    def begin(self, files: SearchFiles, request: ExportRequest) -> tuple[ExportAnswer, bool]:
        """Start an export, or find the one that is the same.

        Returns:
            The export, and whether it was started now.

        Raises:
            ConfigError: The wish makes no sense, or nothing meets it.
            BusyError: As much runs as may.
            ConflictError: The search is just being changed.
            NotFoundError: It was deleted meanwhile.
        """
        with self._searches.reading(files) as opened:
            choice = _chosen(opened.archive, request)
            # Refused now, not when the process has been started.
            opened.archive.weights_digest(choice.candidate.index)
            expected = _expected_bytes(opened.archive, choice, request)
        wanted = {
            "recipe_id": choice.candidate.recipe.recipe_id,
            "dtype": request.dtype,
            "max_shard_size": request.max_shard_size.strip(),
        }
        with files.changing():
            for known in files.exports.glob("*"):
                same = _content(known).get("wanted") == wanted
                if same and (export := self._read(files, known)) and export.state != "failed":
                    return export, False
            content = {
                "wanted": wanted,
                "name": _name(files, choice),
                "candidate": choice.candidate.index,
                "rule": choice.rule,
                "expected_bytes": expected,
                "started_at": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
            }
            directory = files.exports / secrets.token_hex(4)
            with self._runner.room():
                directory.mkdir(parents=True)
                write_whole(directory / _WANTED, content)
                DetachedProcess(directory).start(_command(files, directory, request, choice))
        return self.find(files, directory.name), True

    def delete(self, files: SearchFiles, key: str) -> None:
        """Delete an export; one that is being written is ended.

        Raises:
            NotFoundError: There is none of that id.
            ConflictError: The search is just being changed.
        """
        with files.changing():
            self.find(files, key)
            DetachedProcess(files.exports / key).kill()
            shutil.rmtree(files.exports / key)

    def tar(self, files: SearchFiles, key: str) -> Tar:
        """Return a finished export as a tar.

        Raises:
            NotFoundError: There is none of that id.
            ConflictError: It is not finished.
        """
        export = self.find(files, key)
        if export.state != "finished":
            raise ConflictError(f"export `{key}` is {export.state}; it cannot be downloaded")
        model = files.exports / key / _content(files.exports / key)["name"]
        return tar_of(model, model.name)

    def _read(self, files: SearchFiles, directory: Path) -> ExportAnswer | None:
        content = _content(directory)
        if not content:
            return None
        process, model = DetachedProcess(directory), directory / content["name"]
        is_alive = process.is_alive
        # The directory appears whole; it may have done so between the two looks.
        state: ExportState = "finished"
        if not model.is_dir():
            state = "running" if is_alive else "failed"
        is_done = state == "finished"
        return ExportAnswer(
            id=directory.name,
            search=files.key,
            state=state,
            recipe_id=content["wanted"]["recipe_id"],
            candidate=content["candidate"],
            rule=content["rule"],
            dtype=content["wanted"]["dtype"],
            started_at=content["started_at"],
            written_bytes=_bytes_in(model if is_done else directory),
            expected_bytes=content["expected_bytes"],
            error=process.error() or "its process died" if state == "failed" else None,
            weights_digest=_digest(model) if is_done else None,
            directory=str(model) if is_done else None,
        )


def tar_of(directory: Path, name: str) -> Tar:
    """Return a directory as a tar, below a directory of that name, read as it is sent."""
    members: list[tuple[bytes, Path, int]] = []
    size = 0
    for path in sorted(directory.rglob("*")):
        if path.is_symlink() or not path.is_file():
            continue
        found = path.stat()
        header = tarfile.TarInfo(f"{name}/{path.relative_to(directory).as_posix()}")
        header.size, header.mtime, header.mode = found.st_size, int(found.st_mtime), 0o644
        block = header.tobuf(tarfile.GNU_FORMAT)
        members.append((block, path, found.st_size))
        size += len(block) + found.st_size + _padding(found.st_size)
    size += 2 * tarfile.BLOCKSIZE

    def chunks() -> Iterator[bytes]:
        for block, path, length in members:
            yield block
            left = length
            with path.open("rb") as file:
                while left and (data := file.read(min(_CHUNK, left))):
                    left -= len(data)
                    yield data
            if left:  # the connection must break rather than promise what is not there
                raise OSError(f"{path} became shorter while it was sent")
            yield bytes(_padding(length))
        yield bytes(2 * tarfile.BLOCKSIZE)

    return Tar(f"{name}.tar", size, chunks())


def _chosen(archive: Archive, request: ExportRequest) -> Choice:
    return choose(
        archive,
        prefer=request.prefer,
        floors=request.floors,
        knee=request.knee,
        recipe_id=request.recipe_id,
    )


def _name(files: SearchFiles, choice: Choice) -> str:
    """Name the checkpoint's directory, and with it the model in its card."""
    return f"{files.key.replace('~', '-')}-{choice.candidate.recipe.recipe_id[:10]}"


def _command(
    files: SearchFiles, directory: Path, request: ExportRequest, choice: Choice
) -> list[str]:
    """Return the command that writes what was answered, whatever is recorded meanwhile."""
    model = directory / _name(files, choice)
    command = command_line("export", files.archive, "--out", model, "--json")
    command += ["--candidate", str(choice.candidate.index), "--chosen-by", choice.rule]
    if request.dtype is not None:
        command += ["--dtype", request.dtype]
    return [*command, "--max-shard-size", request.max_shard_size.strip()]


def _expected_bytes(archive: Archive, choice: Choice, request: ExportRequest) -> int | None:
    """Guess the size of the weights: that of the largest source, in the dtype of the merge."""
    sizes = [
        sum(file.stat().st_size for file in source.directory.glob("*.safetensors"))
        for source in archive.sources.everything
        if source.directory.is_dir()
    ]
    if not any(sizes):
        return None
    recipe = choice.candidate.recipe
    scale = _DTYPE_BYTES[request.dtype or recipe.dtype] / _DTYPE_BYTES[recipe.dtype]
    return int(max(sizes) * scale)


def _digest(model: Path) -> str | None:
    return read_record(model / "recipe.json").get("weights_digest")


def _content(directory: Path) -> dict[str, Any]:
    return read_record(directory / _WANTED)


def _bytes_in(directory: Path) -> int:
    total = 0
    for path in directory.rglob("*.safetensors*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # it has just got its last name
            continue
    return total


def _padding(size: int) -> int:
    return -size % tarfile.BLOCKSIZE
