"""From a recipe to a live model: what is written into it, and what it refuses."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import dispatch_model
from transformers import LlamaForCausalLM, PreTrainedModel

from configs.errors import CheckpointError, ConfigError, IncompatibleCheckpointsError
from configs.recipe import Group, MergeRecipe, Source
from configs.worker_settings import Residency
from tests.small_models import live_model, pool_of, recipe_of, saved_tensors, small_bert
from tests.unit.workers.merge_cases import merge_in_numpy
from workers.checkpoint import CheckpointReader
from workers.digest import weights_digest
from workers.mask import keep_mask
from workers.materialize import Materializer
from workers.merged_checkpoint import write_checkpoint
from workers.methods import get_method
from workers.plan import MergeTerm
from workers.sources import Sources


def assert_merged(model: PreTrainedModel, sources: Sources, recipe: MergeRecipe) -> None:
    """Compare every tensor of a live model with the formula, computed in numpy."""
    readers = [CheckpointReader(source.directory) for source in sources.everything]
    terms = [
        MergeTerm(weights[0], drops[0], source.digest)
        for weights, drops, source in zip(
            recipe.weights, recipe.drop_ratios, sources.checkpoints, strict=True
        )
    ]
    for name, merged in saved_tensors(model).items():
        # Every value of a half-precision source is one of float32.
        base, *tuned = (reader.tensor(name).reshape(-1).float() for reader in readers)
        masks = [
            keep_mask(
                base.numel(),
                mask_seed=recipe.mask_seed,
                digest=term.digest,
                tensor_name=name,
                drop_ratio=term.drop_ratio,
            )
            for term in terms
        ]
        expected = merge_in_numpy(base, tuned, terms, masks).to(getattr(torch, recipe.dtype))
        assert torch.equal(merged.reshape(-1), expected), name


def test_merge_is_the_formula_on_every_tensor(pools: Callable[..., Sources]) -> None:
    sources = pools()
    recipe = recipe_of(sources, [0.7, -0.2, 0.9], drop_ratios=[0.5, 0.0, 0.9], mask_seed=5)
    model = live_model(sources)
    Materializer(sources).into(model, recipe)
    assert_merged(model, sources, recipe)


def test_tied_weights_stay_tied_and_are_written_once(pools: Callable[..., Sources]) -> None:
    sources = pools()
    model = live_model(sources)
    Materializer(sources).into(model, recipe_of(sources, [1.0, 0.0, 0.0]))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    with CheckpointReader(sources.checkpoints[0].directory) as reader:
        expected = reader.tensor("model.embed_tokens.weight")
        assert torch.allclose(model.lm_head.weight, expected, rtol=0, atol=1e-7)


def test_materializing_a_then_b_then_a_gives_the_bits_of_a(pools: Callable[..., Sources]) -> None:
    sources = pools()
    model, materializer = live_model(sources), Materializer(sources)
    first = recipe_of(sources, [0.7, 0.1, 0.9], drop_ratios=[0.5, 0.0, 0.9])
    second = recipe_of(sources, [0.0, 1.0, -0.5], drop_ratios=[0.0, 0.2, 0.0])
    digests = []
    for recipe in (first, second, first):
        materializer.into(model, recipe)
        digests.append(materializer.digest_of(model))
    assert digests[0] == digests[2] != digests[1]


def test_weights_of_zero_restore_the_base(pools: Callable[..., Sources]) -> None:
    sources = pools("bfloat16")
    model, materializer = live_model(sources, "bfloat16"), Materializer(sources)
    before = weights_digest(saved_tensors(model).items())
    materializer.into(model, recipe_of(sources, [1.0, 1.0, 1.0], dtype="bfloat16"))
    assert materializer.digest_of(model) != before
    materializer.into(model, recipe_of(sources, [0.0, 0.0, 0.0], dtype="bfloat16"))
    assert materializer.digest_of(model) == before


def test_weight_one_gives_the_logits_of_the_checkpoint(pools: Callable[..., Sources]) -> None:
    sources = pools()
    model = live_model(sources)
    Materializer(sources).into(model, recipe_of(sources, [0.0, 0.0, 1.0]))
    goal = LlamaForCausalLM.from_pretrained(sources.checkpoints[2].directory).eval()
    tokens = torch.arange(20).reshape(2, 10)
    with torch.no_grad():
        assert torch.allclose(model(tokens).logits, goal(tokens).logits, atol=1e-5)


def test_wider_live_model_holds_the_exact_merge(
    pools: Callable[..., Sources], tmp_path: Path
) -> None:
    sources = pools("bfloat16")
    recipe = recipe_of(sources, [0.7, 0.1, 0.9], dtype="bfloat16")
    model, materializer = live_model(sources, "float32"), Materializer(sources)
    materializer.into(model, recipe)
    assert model.dtype == torch.float32
    digest = write_checkpoint(recipe, sources, tmp_path / "out", extra_files={})
    assert materializer.digest_of(model) == digest
    with CheckpointReader(tmp_path / "out") as reader:
        for name, tensor in saved_tensors(model).items():
            assert torch.equal(tensor, reader.tensor(name).float())


def test_narrower_live_model_is_refused(pools: Callable[..., Sources]) -> None:
    sources = pools()
    with pytest.raises(IncompatibleCheckpointsError, match="bfloat16, which cannot hold float32"):
        Materializer(sources).into(
            live_model(sources, "bfloat16"), recipe_of(sources, [1.0, 0.0, 0.0])
        )


def test_groups_have_their_own_weights_and_drop_ratios(pools: Callable[..., Sources]) -> None:
    sources = pools()
    groups = (
        Group(name="attention", patterns=(r".*\.self_attn\..*",)),
        Group(name="rest", patterns=(r"(?!.*\.self_attn\.).*",)),
    )
    recipe = recipe_of(sources, [(1.0, 0.0), (0.0, 0.0), (0.0, 1.0)], groups=groups)
    model = live_model(sources)
    Materializer(sources).into(model, recipe)
    for checkpoint, part in ((0, "self_attn.q_proj"), (2, "mlp.up_proj")):
        name = f"model.layers.1.{part}.weight"
        with CheckpointReader(sources.checkpoints[checkpoint].directory) as reader:
            assert torch.allclose(model.state_dict()[name], reader.tensor(name), atol=1e-7)


def test_linear_merge_needs_no_base(pools: Callable[..., Sources]) -> None:
    with_base = pools()
    sources = Sources(None, with_base.checkpoints)
    recipe = recipe_of(sources, [0.5, 0.25, 0.25], method="linear")
    model = live_model(sources)
    Materializer(sources).into(model, recipe)
    name = "model.layers.0.mlp.up_proj.weight"
    tensors = []
    for source in sources.checkpoints:
        with CheckpointReader(source.directory) as reader:
            tensors.append(reader.tensor(name))
    expected = tensors[0] * 0.5 + tensors[1] * 0.25 + tensors[2] * 0.25
    assert torch.equal(model.state_dict()[name], expected)


def test_encoder_model_materializes_with_its_counters(tmp_path: Path) -> None:
    for seed, name in enumerate(("origin", "math")):
        model = small_bert("BertForSequenceClassification", seed=seed)
        # Older checkpoints carry integer buffers, which are copied, not merged.
        model.register_buffer("steps", torch.tensor([3, 1, 2]))
        model.save_pretrained(tmp_path / name)
    sources = pool_of(tmp_path / "origin", math=tmp_path / "math")
    recipe = recipe_of(sources, [0.5], drop_ratios=[0.3])
    materializer = Materializer(sources)
    materializer.into(model, recipe)
    assert model.steps.tolist() == [3, 1, 2]
    digest = write_checkpoint(recipe, sources, tmp_path / "out", extra_files={})
    assert digest == materializer.digest_of(model)


def test_sources_of_different_dtypes_merge_as_their_values_do(
    pools: Callable[..., Sources], tmp_path: Path
) -> None:
    kinds = ("float32", "bfloat16", "float16")
    mixed = Sources(
        pools("float32").base,
        tuple(pools(kind).checkpoints[index] for index, kind in enumerate(kinds)),
    )
    recipe = recipe_of(mixed, [0.7, -0.2, 0.9], drop_ratios=[0.5, 0.0, 0.9], dtype="bfloat16")
    model, materializer = live_model(mixed, "bfloat16"), Materializer(mixed)
    materializer.into(model, recipe)
    assert materializer.digest_of(model) == write_checkpoint(recipe, mixed, tmp_path / "out")
    for checkpoint, kind in zip(mixed.checkpoints, kinds, strict=True):
        with CheckpointReader(checkpoint.directory) as reader:
            assert reader.dtype == kind
    assert_merged(model, mixed, recipe)


def test_model_of_another_shape_is_refused_with_every_tensor(
    pools: Callable[..., Sources], tmp_path: Path
) -> None:
    sources = pools()
    model = live_model(sources)
    model.resize_token_embeddings(model.config.vocab_size + 1)
    model.model.layers = model.model.layers[:1]
    model.model.extra = torch.nn.Linear(2, 2)
    with pytest.raises(IncompatibleCheckpointsError) as caught:
        Materializer(sources).into(model, recipe_of(sources, [1.0, 0.0, 0.0]))
    problems = {problem.path: problem.message for problem in caught.value.problems}
    assert (
        "the model expects (260, 32), the checkpoints hold (259, 32)"
        in (problems["model.embed_tokens.weight"])
    )
    assert "the model has no tensor of that name" in problems["model.layers.1.mlp.up_proj.weight"]
    assert "the checkpoints have no tensor of that name" in problems["model.extra.weight"]


def test_model_that_ties_what_the_checkpoints_hold_twice_is_refused(
    pools: Callable[..., Sources],
) -> None:
    untied, tied = pools("float32", False), pools("float32", True)
    with pytest.raises(IncompatibleCheckpointsError, match="the model ties it to"):
        Materializer(untied).into(live_model(tied), recipe_of(untied, [1.0, 0.0, 0.0]))


def test_recipe_of_other_checkpoints_is_refused(pools: Callable[..., Sources]) -> None:
    sources = pools()
    stranger = recipe_of(sources, [1.0, 0.0, 0.0]).model_copy(
        update={"checkpoints": (Source(name="x", digest="f" * 64),) * 3}
    )
    with pytest.raises(CheckpointError, match="needs `x` with digest ffffffffffff"):
        Materializer(sources).into(live_model(sources), stranger)


def test_digest_is_refused_when_nothing_was_materialized(pools: Callable[..., Sources]) -> None:
    sources = pools()
    materializer, model = Materializer(sources), live_model(sources)
    with pytest.raises(ValueError, match="nothing was materialized"):
        materializer.digest_of(model)
    materializer.into(model, recipe_of(sources, [1.0, 0.0, 0.0]))
    with pytest.raises(CheckpointError):
        materializer.into(
            model,
            recipe_of(sources, [1.0, 0.0, 0.0], base=Source(name="x", digest="0" * 64)),
        )
    with pytest.raises(ValueError, match="nothing was materialized"):
        materializer.digest_of(model)


@pytest.mark.parametrize("wanted", ["auto", "host", "disk"])
def test_residency_does_not_change_the_bits(
    pools: Callable[..., Sources], wanted: Residency
) -> None:
    sources = pools()
    recipe = recipe_of(sources, [0.7, -0.2, 0.9], drop_ratios=[0.5, 0.0, 0.9])
    model, materializer = live_model(sources), Materializer(sources, residency=wanted)
    materializer.into(model, recipe)
    assert materializer.placement == ("streamed" if wanted == "disk" else "mapped")
    reference = Materializer(sources)
    reference.into(model, recipe)
    assert materializer.digest_of(model) == reference.digest_of(model)


def test_residency_on_a_gpu_is_refused_for_a_model_on_the_cpu(
    pools: Callable[..., Sources],
) -> None:
    sources = pools()
    with pytest.raises(ConfigError, match="found cpu"):
        Materializer(sources, residency="gpu").place(live_model(sources))


@pytest.mark.gpu
@pytest.mark.parametrize("wanted", ["gpu", "host", "disk"])
def test_residency_does_not_change_the_bits_on_a_gpu(
    pools: Callable[..., Sources], wanted: Residency
) -> None:
    sources = pools()
    digests = []
    for method in ("dare_linear", "ties", "della"):
        options = get_method(method).complete_options({})
        recipe = recipe_of(
            sources, [0.7, 0.2, 0.9], drop_ratios=[0.5, 0.1, 0.9], method=method, options=options
        )
        for device, where in (("cpu", "auto"), ("cuda", wanted)):
            model = live_model(sources).to(device)
            materializer = Materializer(sources, residency=where, backend="eager")
            materializer.into(model, recipe)
            digests.append(materializer.digest_of(model))
        assert digests[-1] == digests[-2]


def test_model_dispatched_over_devices_is_written_in_place(pools: Callable[..., Sources]) -> None:
    sources = pools()
    recipe = recipe_of(sources, [0.7, -0.2, 0.9], drop_ratios=[0.5, 0.0, 0.9])
    plain, materializer = live_model(sources), Materializer(sources)
    materializer.into(plain, recipe)
    expected = materializer.digest_of(plain)
    device_map = {"model": "cpu", "lm_head": "cpu"}
    dispatched = dispatch_model(
        live_model(sources), device_map, main_device="cpu", force_hooks=True
    )
    assert dispatched.model.embed_tokens._hf_hook is not None
    materializer.into(dispatched, recipe)
    assert materializer.digest_of(dispatched) == expected
    tokens = torch.arange(10)[None]
    with torch.no_grad():
        assert torch.allclose(dispatched(tokens).logits, plain(tokens).logits, atol=1e-5)


def test_parameters_offloaded_to_disk_are_refused(
    pools: Callable[..., Sources], tmp_path: Path
) -> None:
    sources = pools()
    model = live_model(sources)
    devices = {name: "cpu" for name, _ in model.model.named_children()} | {"layers.1": "disk"}
    del devices["layers"]
    cpu_offload = dispatch_model(
        model.model,
        devices | {"layers.0": "cpu"},
        main_device="cpu",
        offload_dir=str(tmp_path / "offload"),
    )
    model.model = cpu_offload
    with pytest.raises(IncompatibleCheckpointsError, match="a `device_map` that puts nothing on"):
        Materializer(sources).into(model, recipe_of(sources, [1.0, 0.0, 0.0]))
