"""Programs written to escape, to hurt or to forge: each scores 0, and the next one passes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from configs.evaluation import SandboxKind
from evaluators.sandbox import Sandbox
from tests.fault import sandbox_attacks
from tests.fault.sandbox_attacks import (
    ATTACKS,
    KNOWN_FORGERIES,
    LITTER,
    SECRET,
    WEAK_DIFFERENCES,
    Host,
)

KINDS: tuple[SandboxKind, ...] = ("strict", "weak")
ROOT = Path(__file__).parents[2]
ANOTHER_USER = 1_234_567


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> SandboxKind:
    chosen: SandboxKind = request.param
    return chosen


@pytest.fixture(scope="module")
def host(kind: SandboxKind) -> Iterator[Host]:
    with sandbox_attacks.open_host(kind) as opened:
        yield opened
        assert opened.canary.read_text() == "alive"
        assert not opened.was_reached()


@pytest.fixture(scope="module")
def sandbox(kind: SandboxKind) -> Iterator[Sandbox]:
    os.environ[SECRET] = "not for programs"
    with Sandbox(kind, servers=1) as opened:
        yield opened
    del os.environ[SECRET]


def server_pid(sandbox: Sandbox) -> int:
    assert sandbox.run(["pass"])[0].status == "passed"
    return sandbox._idle[0].pid


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
def test_attack_scores_zero_and_the_next_program_passes(
    sandbox: Sandbox, kind: SandboxKind, host: Host, name: str
) -> None:
    before = server_pid(sandbox)
    attack, after = sandbox_attacks.play(sandbox, host, name)
    assert (attack == "passed") == (kind == "weak" and name in WEAK_DIFFERENCES), attack
    assert "took the sandbox down" not in attack
    assert after == "passed"
    if name != "full disk":  # what fills a disk may be left to a new sandbox
        assert server_pid(sandbox) == before


@pytest.mark.parametrize("name", KNOWN_FORGERIES)
def test_what_is_documented_as_possible_gains_a_point_and_no_more(
    sandbox: Sandbox, host: Host, name: str
) -> None:
    before = server_pid(sandbox)
    assert sandbox_attacks.play(sandbox, host, name) == ["passed", "passed"]
    assert sandbox.run(["assert False"])[0].status == "failed"
    assert server_pid(sandbox) == before


@pytest.mark.parametrize("name", LITTER)
def test_litter_is_gone_before_the_next_program(sandbox: Sandbox, host: Host, name: str) -> None:
    assert sandbox_attacks.play(sandbox, host, name) == ["passed", "passed"]
    assert host.canary.read_text() == "alive"


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can play another user")
@pytest.mark.parametrize("kind", KINDS)
def test_attacks_score_zero_when_the_caller_is_not_root(kind: SandboxKind) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fault.sandbox_attacks", kind, str(ANOTHER_USER)],
        env={**os.environ, "PYTHONPATH": str(ROOT), SECRET: "not for programs"},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    passed = {name for name, (verdict, _) in found["verdicts"].items() if verdict == "passed"}
    assert passed == set(LITTER) | (set(WEAK_DIFFERENCES) if kind == "weak" else set())
    assert {after for _, after in found["verdicts"].values()} == {"passed"}
    assert (found["canary"], found["reached"]) == ("alive", False)
