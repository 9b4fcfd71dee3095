"""One search that is disturbed: the lives of its driver, and what strikes from outside.

The driver is started again until its search has ended by itself. Meanwhile faults are taken from a
deck and injected at random moments: some outcomes after the one before, or while a driver starts.
"""

import contextlib
import json
import queue
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from configs.errors import ArchiveError
from scripts.bench.fault_account import Account, Witness, account_for, snapshot_of
from scripts.bench.fault_cluster import Breakable, SmallDisk
from scripts.bench.fault_runner import HANG_S, Begun
from scripts.bench.fault_search import STACK_SIGNAL, Settings
from scripts.zoo.item import make_rng
from workers.outcome import EvaluationKey

SIGNALS = {
    "driver_killed": signal.SIGKILL,
    "driver_terminated": signal.SIGTERM,
    "driver_interrupted": signal.SIGINT,
}
# What ends the driver, too.
ENDING = frozenset({*SIGNALS, "head_killed"})
# Of so many outcomes at most the next fault is waited for, and then as many seconds.
_MOST_OUTCOMES, _MOST_S = 4, 0.15
# How often a driver is struck while it starts, and how long that takes at most.
_STARTING, _START_S = 0.3, 6.0
# How often a search is struck from outside: short ones are many.
_MOST_STRIKES = 8
# How many other kinds come before one that cannot strike now.
_LATER = 5
# A search that needs more drivers than this is not getting anywhere.
_MOST_LIVES = 40
# How long a driver that hangs has to say where.
_STACK_S = 3.0
_TICK_S = 0.05


class Life:
    """A process of the driver, and what it has said so far."""

    def __init__(self, settings: Settings, cluster: Breakable) -> None:
        self.settings = settings
        self._cluster = cluster
        self.errors = Path(f"{settings.log}.{settings.life}.stderr")
        command = [
            sys.executable, "-m", "scripts.bench.fault_search", json.dumps(asdict(settings)),
        ]  # fmt: skip
        with self.errors.open("wb") as errors:
            self.process = cluster.start(command, errors)
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            self._lines.put(line)

    def events(self, wait_s: float) -> list[dict[str, Any]]:
        """Return what was said since, after waiting a while for it."""
        if self.process.poll() is not None:
            # Whatever it has said is there then.
            self._reader.join(timeout=5)
            wait_s = 0.0
        found = []
        with contextlib.suppress(queue.Empty):
            found.append(self._lines.get(timeout=wait_s) if wait_s else self._lines.get_nowait())
            while True:
                found.append(self._lines.get_nowait())
        # The last line of who was killed may be half of one.
        return [json.loads(line) for line in found if line.endswith("\n")]

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the driver."""
        self._cluster.send(self.process, number)

    def end(self) -> None:
        """Make sure that nothing is left."""
        if self.process.poll() is None:
            self.send(signal.SIGKILL)
        self.process.wait()
        self._reader.join(timeout=5)
        if self.process.stdout is not None:
            self.process.stdout.close()


@dataclass(slots=True)
class Fared:
    """How a search fared: faults by kind, lives of its driver, and what was wrong."""

    variant: str
    faults: Counter[str] = field(default_factory=Counter)
    lives: int = 0
    account: Account = field(default_factory=Account)
    hangs: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)


class DisturbedSearch:
    """Runs one search to its end, whatever is done to it.

    Args:
        cluster: Where its workers are.
        disk: Where its archive is; None is beside its log.
        directory: Of its own, for what workers note and drivers say.
        variant: Which search (``fault_search.VARIANTS``).
        seed: Of the search and of the moments.
        deck: Kinds of faults; those that are injected are taken from its end.
        patience_s: Without any sign of life for so long, it hangs.
    """

    def __init__(
        self, cluster: Breakable, disk: SmallDisk | None, directory: Path, *,
        variant: str, seed: int, deck: list[str], patience_s: float,
    ) -> None:  # fmt: skip
        self._cluster, self._disk, self._deck = cluster, disk, deck
        self._random = make_rng(seed, "lives")
        self._patience_s = patience_s
        directory.mkdir()
        home = directory if disk is None else disk.directory
        self._archive = home / f"search{seed}.sqlite"
        self._settings = Settings(
            str(self._archive), str(directory / "begun"), cluster.address, variant, seed, life=0
        )
        self._log = Path(self._settings.log)
        self._seen, self._fared = Witness(), Fared(variant)
        self._timers: list[threading.Timer] = []
        # Workers that are stopped and not woken while their driver lives.
        self._frozen: list[psutil.Process] = []
        self._is_full = False
        self._strikes = 0
        # Why a driver ended that refused to go on.
        self._refusal = ""

    def run(self) -> Fared:
        """Run it; returns how it fared, its archive held against what was seen."""
        try:
            self._run()
        except ArchiveError as error:
            self._fared.account.lost.append(f"the archive cannot be read: {error.message}")
        finally:
            for timer in self._timers:
                timer.cancel()
        return self._fared

    def keep(self, directory: Path) -> None:
        """Copy the archive, and what workers noted, to a directory."""
        directory.mkdir(parents=True, exist_ok=True)
        for path in [*self._archive.parent.glob(f"{self._archive.name}*"), self._log]:
            if path.exists():
                shutil.copy(path, directory / f"{self._archive.stem}-{path.name}")

    def _run(self) -> None:
        while not self._live() and not self._fared.hangs:
            if self._fared.lives >= _MOST_LIVES:
                self._fared.hangs.append(f"did not end in {_MOST_LIVES} lives of its driver")
        self._seen.begun = Begun.read(self._log)
        self._count_inner()
        if not self._fared.hangs:
            self._fared.account = account_for(self._archive, self._seen)

    def _live(self) -> bool:
        """Let a driver live until it ends; returns whether the search has."""
        fared = self._fared
        fared.lives += 1
        self._cluster.mend()
        self._seen.before[fared.lives] = snapshot_of(self._archive)
        life = Life(replace_life(self._settings, fared.lives), self._cluster)
        try:
            last, struck = self._disturb(life)
        finally:
            life.end()
            self._thaw()
            self._is_full = False
            if self._disk is not None:
                self._disk.empty()
        for event in life.events(0.0):
            last = self._note(event) or last
        if last != "ended" and not struck and not fared.hangs:
            said = self._refusal or life.errors.read_text(errors="replace")[-1500:]
            fared.unexpected.append(f"{last} ({life.process.returncode}), unprovoked: {said}")
        return last == "ended"

    def _disturb(self, life: Life) -> tuple[str, bool]:
        """Watch a driver and strike; returns what it said last, and whether it was struck."""
        last, struck, count = "", False, self._moment()
        at = time.monotonic() + self._random.uniform(0, _START_S)
        early = self._random.random() < _STARTING
        alive_at, noted = time.monotonic(), 0
        while life.process.poll() is None:
            now = time.monotonic()
            self._cluster.mend()
            events = life.events(_TICK_S)
            for event in events:
                last = self._note(event) or last
                count -= event["event"] == "recorded"
            size = self._log.stat().st_size if self._log.exists() else 0
            if events or size != noted:
                alive_at, noted = now, size
            elif now - alive_at > self._patience_s:
                self._hang(life, last)
                return last, struck
            is_early = early and now >= at and last in {"", "opened"}
            if not struck and self._may_strike and (count <= 0 or is_early):
                time.sleep(self._random.uniform(0, _MOST_S))
                kind = self._deck[-1]
                if is_early and kind not in SIGNALS:
                    early = False
                elif self._strike(kind, life):
                    self._deck.pop()
                    self._strikes += 1
                    self._fared.faults[kind] += 1
                    struck = kind in ENDING or self._is_full
                    count = self._moment()
                else:
                    # Not now; a few other kinds come first.
                    later = len(self._deck) - 1 - self._random.randint(1, _LATER)
                    self._deck.insert(max(0, later), self._deck.pop())
                    count = 1
        return last, struck

    @property
    def _may_strike(self) -> bool:
        return bool(self._deck) and self._strikes < _MOST_STRIKES

    def _moment(self) -> int:
        return self._random.randint(1, _MOST_OUTCOMES)

    def _note(self, event: dict[str, Any]) -> str:
        """Take in what the driver said; returns it where it says how far it is."""
        kind = str(event["event"])
        if kind == "recorded":
            self._seen.recorded.add(EvaluationKey(**event["key"]))
        elif kind == "told":
            self._seen.told.append(int(event["candidate"]))
        elif kind == "fault":
            self._fared.faults[str(event["kind"])] += 1
        else:
            self._refusal = str(event.get("message", ""))
            return kind
        return ""

    def _hang(self, life: Life, last: str) -> None:
        states = [psutil.Process(life.process.pid).status()]
        life.send(STACK_SIGNAL)
        time.sleep(_STACK_S)
        said = life.errors.read_text(errors="replace")[-3000:]
        self._fared.hangs.append(
            f"life {life.settings.life} of {self._archive.name} ({self._fared.variant}) gave no "
            f"sign of life for {self._patience_s:g} s after `{last}`, {states}, "
            f"{self._cluster.num_up} nodes up: {said}"
        )

    def _strike(self, kind: str, life: Life) -> bool:
        """Inject a fault; returns whether it could be."""
        if kind in SIGNALS:
            life.send(SIGNALS[kind])
            return True
        if kind in self._cluster.suffers:
            return self._cluster.break_part(kind, self._random)
        if kind == "disk_full":
            self._is_full = self._disk is not None and self._disk.fill()
            return self._is_full
        worker = self._some_worker(life.settings.life)
        return worker is not None and self._strike_worker(kind, worker)

    def _strike_worker(self, kind: str, worker: psutil.Process) -> bool:
        try:
            if kind == "worker_killed":
                worker.kill()
                return True
            worker.suspend()
        except psutil.NoSuchProcess:
            return False
        if kind == "worker_stopped":
            self._wake(worker, self._random.uniform(0.5, 3.0) * HANG_S)
        else:
            self._frozen.append(worker)
        return True

    def _some_worker(self, life: int) -> psutil.Process | None:
        """Return a worker of this search that is alive, and was started by our cluster."""
        names = {entry.worker for entry in Begun.read(self._log) if entry.life == life}
        found = []
        for name in sorted(names):
            with contextlib.suppress(psutil.NoSuchProcess):
                process = self._cluster.worker(name)
                usual = {psutil.STATUS_RUNNING, psutil.STATUS_SLEEPING, psutil.STATUS_DISK_SLEEP}
                if process is not None and process.status() in usual:
                    found.append(process)
        return self._random.choice(found) if found else None

    def _wake(self, worker: psutil.Process, after_s: float) -> None:
        def wake() -> None:
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.resume()

        timer = threading.Timer(after_s, wake)
        timer.daemon = True
        self._timers.append(timer)
        timer.start()

    def _thaw(self) -> None:
        for worker in self._frozen:
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.resume()
        self._frozen.clear()

    def _count_inner(self) -> None:
        """Count what workers did wrong; a deadly recipe is one fault, however often it kills."""
        deadly = set()
        for entry in self._seen.begun:
            if entry.fault == "recipe_deadly":
                deadly.add(entry.key.candidate)
            elif entry.fault:
                self._fared.faults[entry.fault] += 1
        if deadly:
            self._fared.faults["recipe_deadly"] += len(deadly)


def replace_life(settings: Settings, life: int) -> Settings:
    """Return the settings of another life."""
    return Settings(**{**asdict(settings), "life": life})
