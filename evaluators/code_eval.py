"""The metric ``code_eval`` for stock tasks that run generated code, inside the sandbox.

HumanEval, MBPP and their kind ask ``evaluate.load("code_eval")`` for it when their functions are
imported. The original is fetched from a hub and runs programs in plain child processes; this
one takes its place (:func:`sandboxed_code_eval`) and runs them in ``evaluators.sandbox``.
"""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from evaluators.sandbox import ProgramResult, shared_sandbox

METRIC = "code_eval"


class SandboxedCodeEval:
    """Drop-in for the ``compute`` of the original metric."""

    def compute(
        self,
        *,
        references: Sequence[str],
        predictions: Sequence[Sequence[str]],
        k: Sequence[int] = (1, 10, 100),
        timeout: float = 3.0,
        **_ignored: object,
    ) -> tuple[dict[str, float], dict[int, list[tuple[int, dict[str, Any]]]]]:
        """Run every candidate with its problem's tests.

        Args:
            references: One program of asserts per problem.
            predictions: Candidate solutions per problem.
            k: Which pass@k to estimate; those with fewer candidates than k are left out.
            timeout: Seconds per program; see ``Sandbox.run``.

        Returns:
            ``{"pass@k": mean over problems}``, and problem -> (candidate, result) pairs.
        """
        results: dict[int, list[tuple[int, dict[str, Any]]]] = {}
        counts: list[tuple[int, int]] = []
        for problem, (tests, candidates) in enumerate(zip(references, predictions, strict=True)):
            programs = [f"{candidate}\n{tests}" for candidate in candidates]
            found = shared_sandbox().run(programs, timeout_s=timeout)
            results[problem] = [
                (index, _record(problem, index, result)) for index, result in enumerate(found)
            ]
            counts.append((len(found), sum(result.status == "passed" for result in found)))
        smallest = min((total for total, _ in counts), default=0)
        return {
            f"pass@{size}": math.fsum(pass_at_k(n, c, size) for n, c in counts) / len(counts)
            for size in k
            if size <= smallest
        }, results


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Estimate the probability that one of k samples is correct, without bias.

    1 - C(n - c, k) / C(n, k): Chen et al., "Evaluating Large Language Models Trained on Code"
    (arXiv:2107.03374), equation 1.
    """
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


@contextmanager
def sandboxed_code_eval() -> Iterator[None]:
    """Answer ``evaluate.load("code_eval")`` with the sandboxed metric; other loads go through.

    Task functions keep what they loaded, so this need only be active while they are imported.
    ``evaluate`` takes torch and five seconds to import, so it is left to the tasks that do.
    """
    replaced: list[tuple[ModuleType, Callable[..., Any]]] = []

    def replace(module: ModuleType) -> None:
        original = module.load

        def load(path: str, *args: object, **options: object) -> object:
            return SandboxedCodeEval() if path == METRIC else original(path, *args, **options)

        replaced.append((module, original))
        vars(module)["load"] = load

    finder = _OnImport("evaluate", replace)
    if "evaluate" in sys.modules:
        replace(sys.modules["evaluate"])
    else:
        sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        if finder in sys.meta_path:
            sys.meta_path.remove(finder)
        for module, original in replaced:
            vars(module)["load"] = original


class _OnImport(MetaPathFinder):
    """Calls a function with a module right after its first import."""

    def __init__(self, name: str, then: Callable[[ModuleType], None]) -> None:
        self._name = name
        self._then = then

    def find_spec(
        self,
        fullname: str,
        _path: Sequence[str] | None,
        _target: ModuleType | None = None,
        /,
    ) -> ModuleSpec | None:
        if fullname != self._name:
            return None
        sys.meta_path.remove(self)  # the next finder in line finds it
        spec = find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_then(module: ModuleType) -> None:
            execute(module)
            self._then(module)

        vars(spec.loader)["exec_module"] = execute_then
        return spec


def _record(problem: int, candidate: int, result: ProgramResult) -> dict[str, Any]:
    passed = result.status == "passed"
    return {
        "task_id": problem,
        "completion_id": candidate,
        "passed": passed,
        "result": "passed" if passed else f"{result.status}: {result.detail}",
    }
