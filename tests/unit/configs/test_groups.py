"""Groups by layers, kinds and expressions: what they hold in models that people merge."""

import functools
import re
from pathlib import Path

import pytest

from configs.errors import ConfigError
from configs.groups import GroupRule, Kind, compile_groups, kind_pattern
from configs.load import job_of
from configs.recipe import Group

JOB = {
    "models": {"base": "org/base", "checkpoints": {"math": "org/math"}},
    "objectives": {"math": "gsm8k"},
    "archive": "runs/x.sqlite",
}
KINDS: tuple[Kind, ...] = Kind.__args__

DECODER = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 0,
}
ENCODER = {k: v for k, v in DECODER.items() if k not in {"num_key_value_heads", "head_dim"}}
EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8}
LATENT = {
    "q_lora_rank": 4,
    "kv_lora_rank": 4,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
T5 = {"vocab_size": 32, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
# The class -> the configuration of a tiny model of it.
MODELS = {
    "LlamaForCausalLM": {**DECODER, "attention_bias": True, "mlp_bias": True},
    "MistralForCausalLM": DECODER,
    "Qwen2ForCausalLM": DECODER,
    "Qwen3ForCausalLM": DECODER,
    "GemmaForCausalLM": DECODER,
    "Gemma2ForCausalLM": DECODER,
    "Gemma3ForCausalLM": DECODER,
    "Phi3ForCausalLM": DECODER,
    "PhiForCausalLM": DECODER,
    "Olmo2ForCausalLM": DECODER,
    "GPT2LMHeadModel": {"vocab_size": 32, "n_embd": 16, "n_layer": 2, "n_head": 2},
    "GPTNeoXForCausalLM": ENCODER,
    "OPTForCausalLM": {**ENCODER, "ffn_dim": 24, "word_embed_proj_dim": 8},
    "FalconForCausalLM": {**ENCODER, "new_decoder_architecture": True, "bias": True},
    "BloomForCausalLM": {"vocab_size": 32, "hidden_size": 16, "n_layer": 2, "n_head": 2},
    "BertForMaskedLM": ENCODER,
    "BertForPreTraining": ENCODER,
    "BertForSequenceClassification": ENCODER,
    "RobertaForMaskedLM": ENCODER,
    "RobertaForSequenceClassification": ENCODER,
    "DistilBertForMaskedLM": {"vocab_size": 32, "dim": 16, "n_layers": 2, "n_heads": 2},
    "T5ForConditionalGeneration": {**T5, "tie_word_embeddings": False},
    "MT5ForConditionalGeneration": {**T5, "feed_forward_proj": "gated-gelu"},
    "MixtralForCausalLM": {**DECODER, "num_local_experts": 2},
    "Qwen2MoeForCausalLM": {**DECODER, **EXPERTS, "shared_expert_intermediate_size": 8},
    "Qwen3MoeForCausalLM": {**DECODER, **EXPERTS},
    "DeepseekV3ForCausalLM": {**DECODER, **EXPERTS, **LATENT},
}


@pytest.fixture(scope="module")
def names_of(tmp_path_factory):
    """Names of a model's tensors: in memory, and in the file that it saves."""
    import torch
    import transformers
    from safetensors import safe_open

    @functools.cache
    def names(model_class: str) -> tuple[str, ...]:
        kind = getattr(transformers, model_class)
        config = kind.config_class(**MODELS[model_class])
        with torch.random.fork_rng():
            model = kind(config)
        directory: Path = tmp_path_factory.mktemp("model")
        model.save_pretrained(directory)
        with safe_open(directory / "model.safetensors", framework="pt") as file:
            return tuple(sorted({*file.keys(), *model.state_dict()}))

    return names


def compiled(**groups) -> list[Group]:
    job = job_of({**JOB, "merge": {"groups": groups}})
    patterns = compile_groups(job.merge.groups)
    return [Group(name=name, patterns=held) for name, held in patterns.items()]


def held_by(group: Group, names) -> set[str]:
    return {name for name in names if group.holds(name)}


def problems_of(**groups) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        compiled(**groups)
    return {problem.path.removeprefix("merge.groups."): problem.message
            for problem in caught.value.problems}  # fmt: skip


def kinds_of(name: str) -> list[Kind]:
    return [kind for kind in KINDS if re.fullmatch(kind_pattern(kind), name)]


@pytest.mark.parametrize("model_class", MODELS)
def test_every_tensor_of_a_model_is_of_exactly_one_kind(names_of, model_class):
    names = names_of(model_class)
    assert len(names) > 10
    assert {name: kinds_of(name) for name in names if len(kinds_of(name)) != 1} == {}


@pytest.mark.parametrize("model_class", MODELS)
def test_layers_partition_what_is_in_layers_and_only_that(names_of, model_class):
    first, later = compiled(first=[{"layers": 0}], later=[{"layers": "1-"}])
    names = names_of(model_class)
    # The kinds that lie outside of layers in all of these, but for norms.
    outside = {name for name in names if kinds_of(name)[0] in {"embeddings", "head"}}
    inside = held_by(first, names) | held_by(later, names)
    assert not held_by(first, names) & held_by(later, names)
    assert len(held_by(first, names)) >= 6
    assert len(held_by(later, names)) >= 6
    assert not inside & outside
    assert all(kinds_of(name) == ["norms"] for name in set(names) - inside - outside)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.layers.0.self_attn.q_norm.weight", "norms"),
        ("model.layers.0.self_attn.q_proj.weight", "attention"),
        ("model.layers.0.self_attn.kv_a_layernorm.weight", "norms"),
        ("model.layers.0.block_sparse_moe.experts.1.w1.weight", "mlp"),
        ("model.layers.0.block_sparse_moe.gate.weight", "mlp"),
        ("model.layers.0.mlp.experts.gate_up_proj", "mlp"),
        ("model.layers.0.mlp.shared_expert_gate.weight", "mlp"),
        ("model.layers.0.mlp.router.weight", "mlp"),
        ("model.decoder.layers.0.fc1.bias", "mlp"),
        ("model.decoder.project_in.weight", "embeddings"),
        ("bert.encoder.layer.0.attention.output.dense.weight", "attention"),
        ("bert.encoder.layer.0.attention.output.LayerNorm.weight", "norms"),
        ("bert.encoder.layer.0.output.dense.weight", "mlp"),
        ("bert.embeddings.LayerNorm.bias", "norms"),
        ("bert.pooler.dense.weight", "head"),
        ("cls.predictions.bias", "head"),
        ("lm_head.layer_norm.weight", "norms"),
        ("lm_head.weight", "head"),
        ("language_model.lm_head.weight", "head"),
        ("embed_out.weight", "head"),
        ("gpt_neox.embed_in.weight", "embeddings"),
        ("shared.weight", "embeddings"),
        ("wpe.weight", "embeddings"),
        ("h.0.ln_1.bias", "norms"),
        ("decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", "attention"),
        ("decoder.block.0.layer.2.DenseReluDense.wi_0.weight", "mlp"),
    ],
)
def test_tensor_is_of_the_kind_that_people_mean(name, kind):
    assert kinds_of(name) == [kind]


def test_tensor_of_an_unknown_module_is_of_no_kind():
    assert kinds_of("backbone.layers.0.mixer.conv1d.weight") == []


@pytest.mark.parametrize(
    ("layers", "held"),
    [
        (3, {3}),
        ("0-2", {0, 1, 2}),
        ("30-", {30, 31, 32, 33}),
        ("0-", set(range(34))),
        ("0-1, 20-21,7", {0, 1, 7, 20, 21}),
        ("3,32-", {3, 32, 33}),
        ("0-999", set(range(34))),
    ],
)
@pytest.mark.parametrize(
    "form",
    ["model.layers.{}.mlp.up_proj.weight", "h.{}.ln_1.bias", "bert.encoder.layer.{}.output.dense",
     "decoder.block.{}.layer.1.EncDecAttention.q.weight", "m.layers.{}.mlp.experts.3.w1.weight"],
)  # fmt: skip
def test_layers_hold_what_they_say_in_every_form_of_name(layers, held, form):
    (group,) = compiled(some=[{"layers": layers}])
    assert {number for number in range(34) if group.holds(form.format(number))} == held
    assert not group.holds("model.embed_tokens.weight")


def test_parts_of_a_rule_must_all_hold_and_rules_add_up(names_of):
    names = names_of("LlamaForCausalLM")
    (group,) = compiled(
        some=[{"layers": "1-", "kind": "attention", "regex": r".*\.weight"}, {"kind": "head"}]
    )
    projections = {f"model.layers.1.self_attn.{part}_proj.weight" for part in "qkvo"}
    assert held_by(group, names) == projections | {"lm_head.weight"}


def test_rest_holds_what_no_other_group_holds(names_of):
    names = set(names_of("MixtralForCausalLM"))
    groups = compiled(
        rest=["rest"], attention=[{"kind": "attention"}], last=[{"layers": "1-", "kind": "mlp"}]
    )
    rest, *others = groups
    assert [group.name for group in groups] == ["rest", "attention", "last"]
    assert held_by(rest, names) == names - set().union(*(held_by(g, names) for g in others))
    assert "model.layers.0.mlp.gate.weight" in held_by(rest, names)


def test_rest_alone_is_everything():
    assert compile_groups({"all": [GroupRule(regex="rest")]}) == {"all": (".*",)}


def test_flags_and_own_groups_of_an_expression_hold_inside_a_rule_and_its_rest():
    some, rest = compiled(
        some=["(?i)MODEL.*", {"layers": 0, "regex": r"(h)\.0\.\1"}, "(?x) lm_head .* # head"],
        rest=[{"kind": "norms"}],
    )
    assert some.holds("model.x")
    assert some.holds("h.0.h")
    some, rest = compiled(some=["(?i)MODEL.*", "(?x) lm_head .* # head"], rest=["rest"])
    assert not rest.holds("model.x")
    assert not rest.holds("lm_head.weight")
    assert rest.holds("x.model")


def test_expressions_reach_the_recipe_as_they_are():
    groups = {"attention": [r".*\.self_attn\..*", "x"], "rest": [r"(?!.*\.self_attn\.).*"]}
    job = job_of({**JOB, "merge": {"groups": groups}})
    assert compile_groups(job.merge.groups) == {name: tuple(p) for name, p in groups.items()}
    assert job.model_dump(mode="json")["merge"]["groups"] == groups
    default = job_of(JOB)
    assert compile_groups(default.merge.groups) == {"all": (".*",)}
    assert default.model_dump(mode="json")["merge"]["groups"] == {"all": [".*"]}


def test_rules_are_archived_as_they_were_written():
    groups = {"a": [{"layers": "0-3", "kind": "mlp"}, {"kind": "head"}, "x.*"], "b": ["rest"]}
    job = job_of({**JOB, "merge": {"groups": groups}})
    dumped = job.model_dump(mode="json")
    assert dumped["merge"]["groups"] == groups
    assert job_of(dumped) == job


def test_everything_wrong_with_rules_is_said_at_once():
    found = problems_of(
        a=[{"kind": "atention", "layers": "11-0"}, "("],
        b=[{"layer": 5}],
        c=[],
        d=[{}],
        e=["attention", "0-3", "rset"],
        f=["rest", ".*x"],
        g=[{"layers": True}],
        h=[{"layers": "-5"}, {"layers": "0-5000"}, {"layers": "all"}],
        i=[{"regex": "["}],
    )
    expected = {
        "a[0].kind": "found `atention`; did you mean `attention`?",
        "a[0].layers": "`11-0`: 11-0 holds no layer; write 0-11",
        "a[1]": "`(` is not a regular expression",
        "b[0].layer": "did you mean `layers`?",
        "c": "must have at least 1 entry",
        "d[0]": "a rule needs `layers`, `kind` or `regex`",
        "e[0]": "did you mean `{kind: attention}`?",
        "e[1]": "did you mean `{layers: 0-3}`?",
        "e[2]": "did you mean `rest`?",
        "f": "`rest` must be the only rule of its group, found 2 rules",
        "g[0].layers": "must be text",
        "h[0].layers": "`-5` must be like 5, 0-11, 12- or 0-3,28-31",
        "h[1].layers": "layers go to 999 at most",
        "h[2].layers": "`all` must be like",
        "i[0].regex": "`[` is not a regular expression",
    }
    assert found.keys() == expected.keys()
    for path, message in expected.items():
        assert message in found[path]


@pytest.mark.parametrize(
    ("groups", "path", "message"),
    [
        ({"a": ["rest"], "b": ["rest"]}, "b", "`rest` is given twice, in `a` too; keep one"),
        ({"a": ["rest"], "b": [r"(x)\1"]}, "a", r"`(x)\1` refers to a group of its own"),
        ({"a": ["rest"], "b": ["(?P<n>x)", "(?P<n>y)"]}, "a", "redefinition of group name"),
    ],
)
def test_rest_that_cannot_be_told_is_refused(groups, path, message):
    assert message in problems_of(**groups)[path]


def test_wrong_rules_hide_no_problem_elsewhere_and_make_none():
    with pytest.raises(ConfigError) as caught:
        job_of({**JOB, "merge": {"groups": {"a": ["("]}, "mask_sed": 1}, "seed": -1})
    assert sorted(problem.path for problem in caught.value.problems) == [
        "merge.groups.a[0]", "merge.mask_sed", "seed",
    ]  # fmt: skip
