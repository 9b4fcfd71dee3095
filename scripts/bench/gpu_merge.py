"""Compare merging on an accelerator with the CPU's bits and with the device's own copy rate.

    python -m scripts.bench.gpu_merge                                     # 4 x 1 B bfloat16 on CUDA
    python -m scripts.bench.gpu_merge --device cpu --elements 4000000     # smoke test anywhere

Prints one JSON object. Rates count the bytes of all sources read once and the result written
once, in GB/s (1e9 bytes): the base and three checkpoints resident on the device, merged into
memory that exists, tensor by tensor, host work included. ``*_equal`` compare with the eager
CPU path, bit for bit.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scripts.bench.printing import print_report
from workers.kernels import Backend, merge_flat
from workers.mask import keep_mask
from workers.methods import get_method
from workers.plan import MergeTerm, TensorMerge

# One MLP matrix of a 7B to 8B model.
TENSOR_ELEMENTS = 4096 * 14336
CHECKED_ELEMENTS = 4_000_037
REPEATS = 7
TERMS = {
    "dare_linear": [MergeTerm(0.6, 0.5, "a"), MergeTerm(0.5, 0.3, "b"), MergeTerm(0.4, 0.9, "c")],
    "task_arithmetic": [
        MergeTerm(0.6, 0.0, "a"),
        MergeTerm(0.5, 0.0, "b"),
        MergeTerm(0.4, 0.0, "c"),
    ],
    "linear": [MergeTerm(0.4, 0.0, "a"), MergeTerm(0.3, 0.0, "b"), MergeTerm(0.3, 0.0, "c")],
}


@dataclass(frozen=True)
class Resident:
    """One tensor of the base, of each checkpoint, and of the result, all on one device."""

    name: str
    base: Tensor
    tuned: Sequence[Tensor]
    out: Tensor

    @property
    def source_bytes(self) -> int:
        """Bytes of the base's tensor."""
        return self.base.nbytes


def merge(method_name: str, resident: Resident, backend: Backend) -> None:
    """Merge one tensor in place."""
    method = get_method(method_name)
    merge_flat(
        TensorMerge(method, resident.name, tuple(TERMS[method_name])),
        resident.out,
        resident.base if method.needs_base else None,
        resident.tuned,
        backend=backend,
    )


def masks_equal(device: str) -> bool:
    """Compare whole masks of several drop ratios with the CPU's."""

    def mask(drop_ratio: float, where: str) -> Tensor:
        return keep_mask(
            CHECKED_ELEMENTS,
            mask_seed=3,
            digest="d",
            tensor_name="t",
            drop_ratio=drop_ratio,
            device=where,
        )

    return all(
        torch.equal(mask(p, device).cpu(), mask(p, "cpu"))
        for p in (0.0, 0.1, 0.5, 0.9, 0.99, 0.9999)
    )


def bits_equal(device: str, backend: Backend, dtype: torch.dtype) -> dict[str, bool]:
    """Compare merges on the device with the eager CPU path: method -> equal."""
    draw = torch.Generator().manual_seed(0)
    base = torch.randn(CHECKED_ELEMENTS, generator=draw) * 0.05
    # Subnormals and signed zeros are where devices like to differ.
    base[:4] = torch.tensor([0.0, -0.0, 1e-40, -1e-40])
    tuned = [base + torch.randn(base.shape, generator=draw) * 0.003 for _ in range(3)]
    here = Resident(
        "t", base.to(dtype), [t.to(dtype) for t in tuned], torch.empty_like(base, dtype=dtype)
    )
    there = Resident(
        "t",
        here.base.to(device, copy=True),
        [t.to(device, copy=True) for t in here.tuned],
        torch.empty_like(here.out, device=device),
    )
    equal: dict[str, bool] = {}
    for method_name in TERMS:
        merge(method_name, here, "eager")
        merge(method_name, there, backend)
        equal[method_name] = torch.equal(
            there.out.cpu().view(torch.uint8), here.out.view(torch.uint8)
        )
    return equal


def allocate(elements: int, device: str) -> list[Resident]:
    """Fill tensors of realistic size with weights and small deltas, bfloat16."""
    draw = torch.Generator(device=device).manual_seed(0)
    residents: list[Resident] = []
    while elements > 0:
        count = min(elements, TENSOR_ELEMENTS)
        base = torch.randn(count, generator=draw, device=device, dtype=torch.bfloat16) * 0.05
        tuned = [
            base + 0.003 * torch.randn(count, generator=draw, device=device, dtype=torch.bfloat16)
            for _ in range(3)
        ]
        name = f"layers.{len(residents)}.weight"
        residents.append(Resident(name, base, tuned, torch.empty_like(base)))
        elements -= count
    return residents


def seconds(work: Callable[[], None], device: str) -> float:
    """Return the median time of calls after the first, each finished on the device."""
    times: list[float] = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def rates(residents: Sequence[Resident], device: str) -> dict[str, float]:
    """Measure copy and merges over all tensors, in GB/s."""
    total = sum(resident.source_bytes for resident in residents)
    results: dict[str, float] = {}

    def copy() -> None:
        for resident in residents:
            resident.out.copy_(resident.base)

    results["copy_gbps"] = 2 * total / seconds(copy, device) / 1e9
    runs: list[tuple[str, str, Backend]] = [
        ("dare", "dare_linear", "compiled"),
        ("task_arithmetic", "task_arithmetic", "compiled"),
        ("linear", "linear", "compiled"),
        ("dare_eager", "dare_linear", "eager"),
    ]
    for label, method_name, backend in runs:

        def work(name: str = method_name, how: Backend = backend) -> None:
            for resident in residents:
                merge(name, resident, how)

        moved = total * (5 if get_method(method_name).needs_base else 4)
        results[f"{label}_gbps"] = moved / seconds(work, device) / 1e9
    for label in ("dare", "task_arithmetic", "linear"):
        results[f"{label}_share_of_copy"] = results[f"{label}_gbps"] / results["copy_gbps"]
    return results


def main() -> None:
    """Run all comparisons and print the JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON value")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--elements", type=int, default=1_000_000_000, help="per checkpoint")
    options = parser.parse_args()
    device: str = options.device
    report: dict[str, object] = {
        "device": torch.cuda.get_device_name() if device != "cpu" else "cpu",
        "torch": torch.__version__,
        "elements": options.elements,
        "masks_equal": masks_equal(device),
    }
    backends: tuple[Backend, ...] = ("eager", "compiled")
    for backend in backends:
        start = time.perf_counter()
        report[f"{backend}_bits_equal"] = {
            str(dtype).removeprefix("torch."): bits_equal(device, backend, dtype)
            for dtype in (torch.float32, torch.bfloat16)
        }
        # For `compiled` nearly all of it is compiling, or reading torch's cache of it.
        report[f"{backend}_checks_s"] = round(time.perf_counter() - start, 2)
    # Printed as far as known, should the rest not fit the device.
    print(json.dumps(report), file=sys.stderr, flush=True)
    report |= rates(allocate(options.elements, device), device)
    print_report(report, as_json=options.json)


if __name__ == "__main__":
    main()
