"""Inject faults of all kinds at random moments into many short searches, and count what they cost.

    python -m scripts.bench.faults --json

Real searches by the real driver on real Ray actors, on a cluster of three hosts on this machine
(network namespaces: as root, with iproute2; elsewhere three nodes that share an address);
evaluations take 10 to 100 ms and score by a formula. Faults: workers are killed, stopped past the
limit after which they count as hanging, and woken again or not, raise, deliver an outcome of
another attempt, twice or too late; recipes kill their workers every time; the driver is killed,
terminated and interrupted; nodes are killed, or cut off for 1 to 30 s; the head is killed, with
the driver on it; the archive's disk is full (a small tmpfs: as root only). Drivers that end are
started again. When a search has ended by itself, its archive is held against what was seen from
outside (``scripts.bench.fault_account``), and every ask is made again.

Goes on until every kind has struck that is not left out. Ends with status 1 where one has not
(``missing_kinds``), where anything was lost, doubled, resumed wrongly or hung, or a driver ended
that nothing had struck; ``problems`` says what.
"""

import argparse
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from scripts.bench.fault_cluster import Breakable, LocalCluster, SmallDisk
from scripts.bench.fault_hosts import HostCluster
from scripts.bench.fault_lives import DisturbedSearch, Fared
from scripts.bench.fault_search import VARIANTS
from scripts.bench.hosts import HostsUnavailableError
from scripts.bench.printing import print_report
from scripts.zoo.item import make_rng

FAULTS, FULL_FAULTS = 200, 1000
# What strikes from outside, as often as it says here in every pack of a deck.
PACK = {
    "worker_killed": 12,
    "worker_stopped": 5,
    "worker_frozen": 2,
    "driver_killed": 3,
    "driver_terminated": 1,
    "driver_interrupted": 1,
    "node_killed": 1,
    "link_cut": 1,
    "head_killed": 1,
    "disk_full": 1,
}
# What workers and messages do by themselves.
INNER = (
    "worker_raises", "recipe_deadly", "outcome_stale", "outcome_late", "outcome_doubled",
    "outcome_held",
)  # fmt: skip
# Of how many searches one has its archive on the small disk.
_ON_SMALL_DISK = 2
_SHOWN_PROBLEMS = 20


def shuffled_deck(rng: random.Random, left_out: Collection[str]) -> list[str]:
    """Return some packs of faults from outside, each shuffled by itself."""
    deck: list[str] = []
    for _ in range(4):
        pack = [kind for kind, count in PACK.items() for _ in range(count)]
        rng.shuffle(pack)
        deck += [kind for kind in pack if kind not in left_out]
    return deck


@contextmanager
def cluster_to_break(left_out: dict[str, str]) -> Iterator[Breakable]:
    """Make hosts, or nodes where there can be none; says then what is left out, and why."""
    with ExitStack() as stack:
        try:
            cluster: Breakable = stack.enter_context(HostCluster())
        except HostsUnavailableError as reason:
            left_out |= dict.fromkeys(HostCluster.suffers - LocalCluster.suffers, str(reason))
            cluster = stack.enter_context(LocalCluster())
        yield cluster


def campaign(
    faults: int,
    seed: int,
    *,
    minutes: float,
    patience_s: float,
    keep: Path | None,
    say: Callable[[str], None],
) -> dict[str, object]:
    """Run searches until there were so many faults, and one of every kind; returns the report.

    Args:
        faults: How many are wanted at least.
        seed: Of everything that is drawn; moments depend on the machine all the same.
        minutes: No search is begun after that time.
        patience_s: A search without any sign of life for so long hangs.
        keep: Where archives go that something is wrong with; None keeps none.
        say: Called with a line for every search.
    """
    started = time.monotonic()
    rng = make_rng(seed, "deck")
    searches: list[Fared] = []
    left_out: dict[str, str] = {}
    deck: list[str] = []
    with tempfile.TemporaryDirectory(prefix="mergefront-faults-") as scratch:
        disk = SmallDisk(Path(scratch, "disk"))
        try:
            if not disk.is_there:
                left_out["disk_full"] = "needs root, to mount a small file system"
            with cluster_to_break(left_out) as cluster:
                while time.monotonic() - started < 60 * minutes:
                    number, missing = len(searches), missing_kinds(searches, left_out)
                    is_enough = num_faults(searches) >= faults
                    if is_enough and not missing:
                        break
                    deck = deck or shuffled_deck(rng, left_out)
                    if is_enough:
                        # Those are left to strike, first of all.
                        deck += [kind for kind in missing if kind in PACK]
                    is_small = disk.is_there and number % _ON_SMALL_DISK == 0
                    search = DisturbedSearch(
                        cluster,
                        disk if is_small else None,
                        Path(scratch, f"search{number}"),
                        variant=list(VARIANTS)[number % len(VARIANTS)],
                        seed=1000 * seed + number,
                        deck=deck,
                        patience_s=patience_s,
                    )
                    fared = search.run()
                    if keep is not None and report_of([fared], {})["problems"]:
                        search.keep(keep)
                    searches.append(fared)
                    seconds = time.monotonic() - started
                    say(
                        f"{seconds:.0f} s: search {number} ({fared.variant}) in {fared.lives} "
                        f"lives, {fared.faults.total()} faults, {num_faults(searches)} so far"
                    )
        finally:
            disk.close()
    return report_of(searches, left_out) | {
        "seed": seed,
        "seconds": time.monotonic() - started,
    }


def num_faults(searches: list[Fared]) -> int:
    """Return how many faults were injected."""
    return sum(fared.faults.total() for fared in searches)


def missing_kinds(searches: list[Fared], left_out: Collection[str]) -> list[str]:
    """Return the kinds that have not struck yet, and are not left out."""
    struck = {kind for fared in searches for kind in fared.faults}
    return [kind for kind in (*PACK, *INNER) if kind not in struck and kind not in left_out]


def report_of(searches: list[Fared], left_out: dict[str, str]) -> dict[str, object]:
    """Count what came of the searches."""
    by_kind = sum((fared.faults for fared in searches), Counter[str]())
    lists = {
        "lost": [text for fared in searches for text in fared.account.lost],
        "duplicates": [text for fared in searches for text in fared.account.duplicates],
        "wrong_resumes": [text for fared in searches for text in fared.account.wrong_resumes],
        "hangs": [text for fared in searches for text in fared.hangs],
        "unexpected_ends": [text for fared in searches for text in fared.unexpected],
    }
    problems = [f"{name}: {text}" for name, texts in lists.items() for text in texts]
    return {
        "faults": by_kind.total(),
        **{name: len(texts) for name, texts in lists.items()},
        "by_kind": dict(sorted(by_kind.items())),
        "left_out": left_out,
        "missing_kinds": missing_kinds(searches, left_out),
        "searches": len(searches),
        "lives": sum(fared.lives for fared in searches),
        "problems": problems[:_SHOWN_PROBLEMS],
    }


def is_clean(report: dict[str, object]) -> bool:
    """Say whether nothing was wrong, and nothing was left untried."""
    return not report["problems"] and not report["missing_kinds"]


def main() -> None:
    """Run the campaign and print its report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--faults", type=int, help=f"how many at least; default {FAULTS}")
    parser.add_argument("--full", action="store_true", help=f"{FULL_FAULTS} faults")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--minutes", type=float, default=600,
        help="begin no search after so many; default: %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--patience", type=float, default=180, metavar="SECONDS",
        help="without a sign of life for so long a search hangs",
    )  # fmt: skip
    parser.add_argument("--keep", type=Path, help="copy archives there that are wrong")
    options = parser.parse_args()
    # Ends what was started here, as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    faults = options.faults or (FULL_FAULTS if options.full else FAULTS)
    report = campaign(
        faults,
        options.seed,
        minutes=options.minutes,
        patience_s=options.patience,
        keep=options.keep,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    print_report(report, as_json=options.json)
    raise SystemExit(0 if is_clean(report) else 1)


if __name__ == "__main__":
    main()
