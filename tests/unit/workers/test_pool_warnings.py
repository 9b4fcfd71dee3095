"""What is suspicious about a pool that can be merged."""

import shutil

import torch
from safetensors.torch import load_file

from tests.unit.workers.copied_pool import CopiedPool, Tensors


def test_other_attention_heads_are_a_warning(pool: CopiedPool) -> None:
    # The shapes agree, the function does not.
    pool.change_json("code", "config.json", lambda c: c.update(num_attention_heads=4))
    assert any("num_attention_heads = 4" in warning for warning in pool.check().warnings)


def test_checkpoint_that_is_the_base_or_another_is_a_warning(pool: CopiedPool) -> None:
    for name, source in (("code", "base"), ("math", "instruct")):
        shutil.copy(pool.root / source / "model.safetensors", pool.root / name)
    warnings = pool.check().warnings
    assert "`code` has the weights of the base; its genes change nothing" in warnings
    assert "`instruct` and `math` are the same weights; keep one of them" in warnings


def scale_delta(pool: CopiedPool, name: str, factor: float) -> None:
    base = load_file(pool.root / "base" / "model.safetensors")
    pool.change(
        name,
        lambda tensors: tensors.update(
            {key: base[key] + factor * (tensor - base[key]) for key, tensor in tensors.items()}
        ),
    )


def test_deltas_at_which_dare_breaks_are_a_warning(pool: CopiedPool) -> None:
    scale_delta(pool, "math", 4.0)
    (warning,) = pool.check().warnings
    assert warning.startswith("`math`: 1 % of its deltas exceed")
    assert "DARE breaks near 0.03" in warning
    assert pool.check(method="task_arithmetic").warnings == ()


def test_base_of_another_family_is_a_warning(pool: CopiedPool) -> None:
    draw = torch.Generator().manual_seed(1)

    def redraw(tensors: Tensors) -> None:
        for name, tensor in tensors.items():
            tensors[name] = torch.randn(tensor.shape, generator=draw) * 0.08

    pool.change("math", redraw)
    (warning,) = pool.check().warnings
    assert "as large as the weights" in warning
    assert "the base is probably not its base" in warning


def test_mixed_dtypes_are_a_warning(pool: CopiedPool) -> None:
    def halve(tensors: Tensors) -> None:
        tensors.update({name: tensor.bfloat16() for name, tensor in tensors.items()})

    pool.change("math", halve)
    assert pool.check().warnings == ("`math` is bfloat16, `base` float32",)


def test_cosines_are_measured_and_a_near_copy_is_a_warning(pool: CopiedPool) -> None:
    similarity = pool.check().similarity
    assert similarity is not None
    assert similarity.names == ("instruct", "code", "math")
    assert abs(similarity.cosines[0][1]) < 0.1
    base = load_file(pool.root / "base" / "model.safetensors")
    math = load_file(pool.root / "math" / "model.safetensors")
    # The same direction, half as far, in a file of another digest.
    pool.change("code", lambda t: t.update({key: (base[key] + math[key]) / 2 for key in base}))
    (warning,) = pool.check().warnings
    assert warning.startswith("`code` and `math`: their task vectors have a cosine of 1")


def test_near_copy_is_a_warning_without_a_base_too(pool: CopiedPool) -> None:
    assert pool.check(base=None, method="linear").warnings == ()
    math = load_file(pool.root / "math" / "model.safetensors")
    pool.change("code", lambda t: t.update({key: math[key] * 1.0001 for key in math}))
    (warning,) = pool.check(base=None, method="linear").warnings
    assert "`code` and `math`: their weights have a cosine of 1" in warning


def test_other_chat_template_is_a_warning(pool: CopiedPool) -> None:
    for name in ("base", "instruct", "code"):
        (pool.root / name / "chat_template.jinja").write_text("{{ messages }}")
    report = pool.check()
    assert report.warnings == ()
    assert [facts.chat_template for facts in report.sources] == [
        "reference", "same", "same", "none",
    ]  # fmt: skip
    for name in ("code", "math"):
        (pool.root / name / "chat_template.jinja").write_text("{{ other }}")
    report = pool.check()
    (warning,) = report.warnings
    assert warning.startswith("`code`, `math` have another chat template than `base`")
    assert report.sources[2].chat_template == "other"
    (pool.root / "base" / "chat_template.jinja").unlink()
    (warning,) = pool.check().warnings
    assert "`instruct`, `code`, `math` have a chat template, `base` has none" in warning
