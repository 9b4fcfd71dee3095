import re

from workers.layers import Layout

NAMES = [
    "model.embed_tokens.weight",
    *(f"model.layers.{n}.mlp.experts.{e}.up.weight" for n in range(11) for e in range(2)),
    *(f"model.layers.{n}.self_attn.q.weight" for n in range(11)),
    "model.norm.weight",
    "lm_head.weight",
]
LAYOUT = Layout.of(NAMES, {11})


def test_layers_are_found_by_name_and_count():
    assert LAYOUT.stacks == {"model.layers.": 11}
    assert LAYOUT.place("model.layers.10.mlp.experts.1.up.weight") == (
        "model.layers.", 10, "mlp.experts.1.up.weight",
    )  # fmt: skip
    assert LAYOUT.place("model.norm.weight") is None


def test_numbers_that_count_no_layers_are_no_layers():
    assert Layout.of(["head.0.weight", "head.1.weight"], {12}).stacks == {}
    assert Layout.of(["h.0.weight", "h.2.weight"], {2}).stacks == {}


def test_two_stacks_of_one_model_are_kept_apart():
    names = ["encoder.block.0.w", "encoder.block.1.w", "decoder.block.0.w", "h.0.w"]
    assert Layout.of(names, {1, 2}).stacks == {
        "encoder.block.": 2, "decoder.block.": 1, "h.": 1,
    }  # fmt: skip


def test_embeddings_come_before_the_layers_and_heads_after():
    assert LAYOUT.is_before_layers("model.embed_tokens.weight")
    assert LAYOUT.is_before_layers("transformer.wte.weight")
    assert not LAYOUT.is_before_layers("embed_out.weight")
    assert not LAYOUT.is_before_layers("model.norm.weight")


def test_patterns_match_exactly_the_tensors_they_were_made_of():
    some = [name for name in NAMES if ".1." in name or "q.weight" in name or "norm" in name]
    patterns = LAYOUT.patterns(some)
    matched = [name for name in NAMES if any(re.fullmatch(p, name) for p in patterns)]
    assert sorted(matched) == sorted(some)
    assert r"model\.layers\.\d+\.self_attn\.q\.weight" in patterns
    assert LAYOUT.patterns(NAMES) == (".*",)


def test_labels_say_layers_and_kinds():
    assert LAYOUT.label(NAMES) == "all"
    assert LAYOUT.label(["model.layers.3.self_attn.q.weight"]) == "layers_3.self_attn"
    assert LAYOUT.label(["model.norm.weight", "lm_head.weight"]) == "norm_lm_head"
