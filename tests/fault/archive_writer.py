"""A process that writes an archive as fast as it can, and one that kills it again and again.

``python archive_writer.py ARCHIVE KILLS SEED`` starts a writer, kills it with SIGKILL at a random
moment, and starts the next on the same archive, KILLS times. After each kill it prints one JSON
line: what the writer had been promised (``promised``: keys whose ``record_outcome`` returned),
what the archive holds (``recorded``), and every row that is not what was to be written (``wrong``).
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from configs.errors import ArchiveNotFoundError
from configs.evaluation import SPLITS, SplitName
from evaluators.blocks import partition
from optimizer.archive.archive import Archive
from tests.contract.archive_examples import (
    TASKS,
    completed,
    completed_block,
    example_archive,
    example_candidate,
    example_manifest,
    example_values,
    failed,
)
from workers.outcome import Completed, Failed, Outcome


def open_or_create(path: Path) -> Archive:
    try:
        return Archive.open(path, writable=True)
    except ArchiveNotFoundError:
        return example_archive(path)


def outcome_of(candidate: int, split: SplitName) -> Outcome:
    return failed(candidate, split) if candidate % 7 == 3 else completed(candidate, split)


def write(path: Path, promises: int) -> None:
    """Record until killed; say each thing that was promised to be on the disk."""
    with open_or_create(path) as archive:
        archive.begin_run()
        while True:
            index = len(archive.candidates())
            if index and archive.outcome(index - 1, "search") is None:
                index -= 1  # proposed, then killed before its outcome
            else:
                archive.record_proposal(example_candidate(index, seen=len(archive.observations())))
            for split in SPLITS:
                if record(archive, index, split):
                    os.write(promises, json.dumps([index, split]).encode() + b"\n")


def record(archive: Archive, index: int, split: SplitName) -> bool:
    """Record an evaluation, the search split of some candidates in two blocks."""
    outcome = outcome_of(index, split)
    if split != "search" or index % 5 != 2 or isinstance(outcome, Failed):
        return archive.record_outcome(outcome)
    is_new = False
    for items in partition(example_manifest().items(split), (1, 1)):
        name = archive.record_block(split, items)
        is_new = archive.record_outcome(completed_block(index, name, items))
    return is_new


def recorded(path: Path) -> tuple[list[list[object]], list[str]]:
    """What the archive holds, and what of it is wrong."""
    if not path.exists():
        return [], []
    wrong = []
    with Archive.open(path) as archive:
        for index, candidate in enumerate(archive.candidates()):
            seen = candidate.seen
            if not candidate.same_proposal(example_candidate(index, seen=seen)):
                wrong.append(f"candidate {index}")
        found = [outcome for split in SPLITS for outcome in archive.outcomes(split)]
        every = [outcome.sequence for split in SPLITS for outcome in archive.evaluations(split)]
        if sorted(every) != list(range(len(every))):
            wrong.append("sequence")
        for outcome in found:
            key = outcome.key
            expected = outcome_of(key.candidate, key.split)
            if isinstance(expected, Failed):
                if outcome.message != expected.message:
                    wrong.append(f"failure {key}")
                continue
            scores = archive.task_scores(key.candidate, key.split)
            texts = archive.texts(key.candidate, key.split)
            # Texts of dominated candidates of the search are not kept.
            kept = (expected.texts, {}) if key.split == "search" else (expected.texts,)
            if isinstance(expected, Completed) and texts not in kept:
                wrong.append(f"texts {key}")
            for task in TASKS:
                values = example_values(key.candidate, key.split, task)
                if task not in scores or scores[task].values.tobytes() != values.tobytes():
                    wrong.append(f"scores {key} {task}")
    return [[outcome.key.candidate, outcome.key.split] for outcome in found], wrong


def main() -> None:
    path, kills, rng = Path(sys.argv[1]), int(sys.argv[2]), random.Random(int(sys.argv[3]))
    for _ in range(kills):
        read, promises = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(read)
            write(path, promises)
        os.close(promises)
        with os.fdopen(read) as lines:
            # Some die while they create or open the archive, most some time after a promise.
            count = rng.choice([0, rng.randrange(1, 10)])
            promised = [json.loads(lines.readline()) for _ in range(count)]
            time.sleep(rng.random() * (0.02 if count else 0.15))
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            assert os.WIFSIGNALED(status), "the writer ended by itself"
            promised += [json.loads(line) for line in lines]
        keys, wrong = recorded(path)
        print(json.dumps({"promised": promised, "recorded": keys, "wrong": wrong}), flush=True)


if __name__ == "__main__":
    main()
