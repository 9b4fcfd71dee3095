"""Compiled kernels give the eager bits, and their absence is no failure."""

import random
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tests.unit.workers.merge_cases import merge, pool, same_bits, terms
from workers import compiled, kernels
from workers.compiled import CompilerError, Operands, fuse, is_worthwhile
from workers.methods.contract import Chunk
from workers.methods.linear import add_tuned

# torch itself still uses what it deprecates when inductor is imported, and remarks on halves of
# both kinds in one kernel, which is what a test here is about.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:bf16 and fp16 are mixed:UserWarning"),
]
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="no C++ compiler on this machine"
)
COUNT = 100_003
ODD_VALUES = torch.tensor([0.0, -0.0, torch.nan, torch.inf, -torch.inf, 1e-40, -1e-40, 3e38, 1.0])


def odd_pool(count: int, dtypes: tuple[torch.dtype, ...]) -> list[torch.Tensor]:
    """A base and tuned tensors with special values at the front, the middle and the end."""
    base, tuned = pool(count, num_tuned=len(dtypes) - 1)
    tensors = [base, *tuned]
    for shift, tensor in enumerate(tensors):
        for start in (0, count // 2, count - len(ODD_VALUES)):
            tensor[start : start + len(ODD_VALUES)] = ODD_VALUES.roll(shift)
    return [tensor.to(dtype) for tensor, dtype in zip(tensors, dtypes, strict=True)]


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "dtypes", "drop_ratios"),
    [
        ("dare_linear", (torch.float32,) * 4, [0.5, 0.0, 0.9]),
        ("dare_linear", (torch.bfloat16, torch.bfloat16, torch.float16), [0.99, 0.3]),
        ("task_arithmetic", (torch.float16,) * 3, [0.0, 0.0]),
        ("linear", (torch.bfloat16,) * 4, [0.0, 0.0, 0.0]),
        ("ties", (torch.bfloat16,) * 4, [0.8, 0.5, 0.0]),
        ("dare_ties", (torch.float32,) * 4, [0.5, 0.9, 0.0]),
        ("della", (torch.bfloat16,) * 4, [0.5, 0.3, 0.0]),
        ("delta_guided", (torch.bfloat16,) * 4, [0.0, 0.0, 0.0]),
        ("delta_guided", (torch.float32,) * 4, [0.0, 0.0, 0.0]),
    ],
    ids=[
        "dare-float32",
        "dare-halves",
        "arithmetic-float16",
        "linear-bfloat16",
        "ties-bfloat16",
        "dare-ties-float32",
        "della-bfloat16",
        "delta-guided-bfloat16",
        "delta-guided-float32",
    ],
)
def test_compiled_merge_gives_the_eager_bits(
    method: str,
    dtypes: tuple[torch.dtype, ...],
    drop_ratios: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Long enough for several threads.
    monkeypatch.setattr(kernels, "_LONG", 2**15)
    base, *tuned = odd_pool(COUNT, dtypes)
    chosen = terms([0.7, -0.3, 1.1][: len(tuned)], drop_ratios)
    eager = merge(base, tuned, chosen, method=method)
    before = torch.get_num_threads()
    try:
        for threads, chunk in ((1, None), (2, None), (3, None), (2, 33_333)):
            torch.set_num_threads(threads)
            options = {"method": method, "backend": "compiled", "chunk_elements": chunk}
            assert same_bits(merge(base, tuned, chosen, **options), eager)
    finally:
        torch.set_num_threads(before)


@needs_compiler
@pytest.mark.slow
def test_compiling_is_done_once_for_all_lengths_and_drop_ratios() -> None:
    from torch._dynamo.utils import counters

    def compile_count() -> int:
        return int(counters["stats"]["unique_graphs"])

    def run(count: int, drop_ratios: list[float]) -> None:
        base, tuned = pool(count, num_tuned=2, seed=count)
        chosen = terms([0.5, 0.4], drop_ratios)
        options = {"tensor_name": f"layer.{count}", "mask_seed": count}
        fused = merge(base, tuned, chosen, backend="compiled", **options)
        assert same_bits(fused, merge(base, tuned, chosen, **options))

    run(20_000, [0.5, 0.5])
    before = compile_count()
    for count, drop_ratios in ((20_001, [0.0, 0.9]), (65_536, [0.1, 0.0]), (70_000, [0.9, 0.9])):
        run(count, drop_ratios)
    assert compile_count() == before


@needs_compiler
@pytest.mark.slow
def test_threads_that_call_compiled_code_at_the_same_time_do_not_disturb_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each is held up before and after its call, where torch keeps books on it."""
    from torch._dynamo import eval_frame

    base, tuned = pool(2**18, torch.bfloat16)
    expected = merge(base, tuned, terms([0.5, 0.4, 0.1]), backend="compiled", method="linear")
    draw = random.Random(0)

    def held_up(work: Callable[[object], object]) -> Callable[[object], object]:
        def slow(argument: object) -> object:
            time.sleep(draw.random() / 1000)
            return work(argument)

        return slow

    places = (
        (eval_frame, "_callback_from_stance"),
        (torch._C._functorch, "pop_dynamic_layer_stack_and_undo_to_depth"),
    )
    for module, name in places:
        monkeypatch.setattr(module, name, held_up(getattr(module, name)))

    def work(_: int) -> bool:
        found = merge(base, tuned, terms([0.5, 0.4, 0.1]), backend="compiled", method="linear")
        return same_bits(found, expected)

    with ThreadPoolExecutor(3) as threads:
        assert all(threads.map(work, range(600)))


@needs_compiler
def test_method_that_is_not_one_graph_is_not_compiled() -> None:
    def in_two_graphs(chunk: Chunk) -> torch.Tensor:
        total = chunk.tuned[0].float() * 0.5
        torch._dynamo.graph_break()
        return total + 1.0

    out, scales = torch.empty(4, 4096), torch.ones(1)
    fused = fuse(
        in_two_graphs, (), Operands(out, None, [torch.ones(4, 4096)], scales, scales, None)
    )
    assert fused is not None
    raised = []
    for _ in range(2):
        with pytest.raises(CompilerError, match="graph_break") as caught:
            fused()
        raised.append(caught.value)
    # One that was kept would keep what its traceback refers to: models, and sources.
    assert raised[0] is not raised[1]


def test_small_tensors_take_the_eager_path() -> None:
    def fused(*shape: int) -> object:
        out = torch.empty(shape)
        scales = torch.ones(1)
        return fuse(add_tuned, (), Operands(out, None, [torch.ones(shape)], scales, scales, None))

    assert fused(2, 50) is None
    assert fused(1, 2**14) is None
    assert fused(4, 2**12) is not None


def test_compiling_is_worthwhile_for_large_models_where_a_compiler_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(compiled, "has_compiler", lambda _: True)
    assert not is_worthwhile(1_000_000, cpu)
    assert is_worthwhile(7_000_000_000, cpu)
    monkeypatch.setattr(compiled, "has_compiler", lambda _: False)
    assert not is_worthwhile(7_000_000_000, cpu)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["eager", "compiled"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gpu_gives_the_bits_of_the_cpu(backend: str, dtype: torch.dtype) -> None:
    base, *tuned = odd_pool(COUNT, (dtype,) * 4)
    chosen = terms([0.7, -0.3, 1.1], [0.5, 0.0, 0.9])
    there = [tensor.cuda() for tensor in (base, *tuned)]
    merged = merge(there[0], there[1:], chosen, backend=backend)
    assert same_bits(merged.cpu(), merge(base, tuned, chosen))
