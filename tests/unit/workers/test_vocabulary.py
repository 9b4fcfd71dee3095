"""Models with tables of tokens of different lengths: what is decided, and what is merged."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, BertForMaskedLM, LlamaForCausalLM

from configs.errors import IncompatibleCheckpointsError
from configs.recipe import MergeRecipe
from configs.schema import JobConfig, Merge
from evaluators.manifest import Manifest
from tests.conftest import TinyPool
from tests.learned_merges import with_coefficients, write_learned
from tests.small_models import EMBEDDINGS, HEAD, pool_of, recipe_of, small_bert, write_words
from tests.unit.workers.grown_models import ROWS, Grow
from workers.checkpoint import CheckpointReader
from workers.column_coefficients import check_coefficients
from workers.compat import check_compatible
from workers.job import WorkerSpec, load_live_model
from workers.materialize import Materializer
from workers.merged_checkpoint import write_checkpoint
from workers.sources import Sources
from workers.vocabulary import companion, decide_vocabulary, open_readers


def table(directory: Path, name: str = EMBEDDINGS) -> torch.Tensor:
    with CheckpointReader(directory) as reader:
        return reader.tensor(name).float()


def merged(sources: Sources, recipe: MergeRecipe, out: Path) -> dict[str, torch.Tensor]:
    write_checkpoint(recipe, sources, out)
    with CheckpointReader(out) as reader:
        return {name: reader.tensor(name) for name in reader.entries}


def test_refuse_and_equal_vocabularies_decide_nothing(tiny_pool: TinyPool, grow: Grow) -> None:
    sources = pool_of(tiny_pool.base, math=grow(tiny_pool.checkpoints["math"], rows=264))
    assert decide_vocabulary(sources, "refuse") is None
    with pytest.raises(IncompatibleCheckpointsError, match=r"expected \(259, 32\), found \(264"):
        check_compatible(sources, Merge())
    equal = pool_of(tiny_pool.base, math=tiny_pool.checkpoints["math"])
    assert decide_vocabulary(equal, "pad") is None


@pytest.mark.parametrize(
    ("policy", "rows", "source"), [("pad", 264, "code"), ("intersect", 259, "base")]
)
def test_policy_decides_rows_and_tokenizer(
    tiny_pool: TinyPool, grow: Grow, policy: Any, rows: int, source: str
) -> None:
    sources = pool_of(
        tiny_pool.base,
        math=grow(tiny_pool.checkpoints["math"], rows=264),
        code=grow(tiny_pool.checkpoints["code"], rows=262, tokens=("<a>", "<b>")),
    )
    decided = decide_vocabulary(sources, policy)
    assert decided is not None
    assert (decided.rows, decided.source.name) == (rows, source)
    assert [(t.rows, t.tokens) for t in decided.tables] == [(259, 259), (264, 259), (262, 261)]
    assert companion(sources, decided).name == source
    report = check_compatible(sources, Merge(), policy)
    assert report.vocabulary == decided
    assert report.warnings == (
        f"the models have tables of 259, 264, 262 tokens; merges have {rows} ({policy}), and the "
        f"tokenizer of `{source}`",
    )
    assert report.num_parameters == sum(
        tensor.numel() for name, tensor in model_tensors(tiny_pool.base).items()
    ) + 32 * (rows - ROWS)


def model_tensors(directory: Path) -> dict[str, torch.Tensor]:
    with CheckpointReader(directory) as reader:
        return {name: reader.tensor(name) for name in reader.entries}


def test_pad_keeps_all_rows_and_lets_a_checkpoint_add_nothing_where_it_has_none(
    tiny_pool: TinyPool, grow: Grow, tmp_path: Path
) -> None:
    math = grow(tiny_pool.checkpoints["math"], rows=261, tokens=("<a>",))
    code = grow(tiny_pool.checkpoints["code"], rows=264, tokens=("<a>", "<b>", "<c>"))
    sources = pool_of(tiny_pool.base, math=math, code=code)
    decided = decide_vocabulary(sources, "pad")
    tensors = merged(sources, recipe_of(sources, [0.5, 0.3], vocabulary=decided), tmp_path / "out")
    found, base = tensors[EMBEDDINGS], table(tiny_pool.base)
    assert found.shape == (264, 32)
    shared = base + 0.5 * (table(math)[:ROWS] - base) + 0.3 * (table(code)[:ROWS] - base)
    torch.testing.assert_close(found[:ROWS], shared)
    # <a>: the base lacks it, so `math`, the first that has it, stands for the base.
    row_a = table(math)[259] + 0.3 * (table(code)[259] - table(math)[259])
    torch.testing.assert_close(found[259], row_a)
    # <b>: a padding row of `math`, a token of `code` alone, which no weight can change.
    assert torch.equal(found[260], table(code)[260])
    assert torch.equal(found[261:], table(code)[261:])
    other = model_tensors(tiny_pool.base)["model.layers.0.mlp.up_proj.weight"]
    assert tensors["model.layers.0.mlp.up_proj.weight"].shape == other.shape


def test_intersect_keeps_the_rows_of_all_and_merges_them_as_if_nothing_was_longer(
    tiny_pool: TinyPool, grow: Grow, tmp_path: Path
) -> None:
    names = ("math", "code")
    plain = pool_of(tiny_pool.base, **{name: tiny_pool.checkpoints[name] for name in names})
    longer = pool_of(
        tiny_pool.base,
        math=grow(tiny_pool.checkpoints["math"], rows=264, tokens=("<a>",)),
        code=grow(tiny_pool.checkpoints["code"], rows=262, tokens=("<other>",)),
    )
    decided = decide_vocabulary(longer, "intersect")
    expected = merged(plain, recipe_of(plain, [0.5, 0.3], vocabulary=None), tmp_path / "plain")
    found = merged(longer, recipe_of(longer, [0.5, 0.3], vocabulary=decided), tmp_path / "out")
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["vocab_size"] == ROWS


def test_untied_heads_get_the_same_length(tiny_pool: TinyPool, grow: Grow, tmp_path: Path) -> None:
    base = grow(tiny_pool.base, tied=False)
    code = grow(tiny_pool.checkpoints["code"], tied=False, rows=262, tokens=("<a>", "<b>", "<c>"))
    sources = pool_of(base, code=code)
    decided = decide_vocabulary(sources, "pad")
    tensors = merged(sources, recipe_of(sources, [0.5], vocabulary=decided), tmp_path / "out")
    for name in (EMBEDDINGS, HEAD):
        torch.testing.assert_close(
            tensors[name][:ROWS], (table(base, name) + table(code, name)[:ROWS]) / 2
        )
        assert torch.equal(tensors[name][ROWS:], table(code, name)[ROWS:])


def test_head_with_a_bias_is_resized_in_encoders(tmp_path: Path) -> None:
    directories = []
    for name, rows in (("base", 40), ("tuned", 44)):
        model = small_bert(
            seed=rows, vocab_size=rows, intermediate_size=40, max_position_embeddings=44
        )
        model.save_pretrained(tmp_path / name)
        write_words(tmp_path / name, rows)
        directories.append(tmp_path / name)
    with CheckpointReader(directories[0]) as reader, CheckpointReader(directories[1]) as other:
        # Positions do not count tokens, even where there are as many of them.
        positions = "bert.embeddings.position_embeddings.weight"
        assert reader.entries[positions].shape == other.entries[positions].shape
    sources = pool_of(directories[0], tuned=directories[1])
    decided = decide_vocabulary(sources, "pad")
    assert decided is not None
    assert (decided.rows, decided.source.name) == (44, "tuned")
    recipe = recipe_of(sources, [0.5], vocabulary=decided)
    tensors = merged(sources, recipe, tmp_path / "out")
    assert tensors["cls.predictions.bias"].shape == (44,)
    model = BertForMaskedLM.from_pretrained(tmp_path / "out")
    assert model.cls.predictions.decoder.weight.shape == (44, 16)
    live = BertForMaskedLM.from_pretrained(directories[0])
    live.resize_token_embeddings(44, mean_resizing=False)
    materializer = Materializer(sources)
    materializer.into(live, recipe)
    assert torch.equal(live.cls.predictions.decoder.bias, model.cls.predictions.decoder.bias)


def test_tensors_that_only_happen_to_be_as_long_are_no_tables_of_tokens(tmp_path: Path) -> None:
    directories = {}
    for name, tokens in (("base", 38), ("tuned", 40)):
        directories[name] = tmp_path / name
        model = small_bert(
            seed=tokens,
            vocab_size=40,
            hidden_size=40,
            intermediate_size=40,
            max_position_embeddings=40,
            type_vocab_size=40,
        )
        model.save_pretrained(directories[name])
        write_words(directories[name], tokens)
    sources = pool_of(directories["base"], tuned=directories["tuned"])
    decided = decide_vocabulary(sources, "pad")
    tensors = merged(sources, recipe_of(sources, [0.5], vocabulary=decided), tmp_path / "out")
    taken = set()
    for name, tensor in tensors.items():
        base, tuned = table(directories["base"], name), table(directories["tuned"], name)
        torch.testing.assert_close(tensor[:38], (base + tuned)[:38] / 2)
        if torch.equal(tensor[38:], tuned[38:]):
            taken.add(name)
    assert taken == {"bert.embeddings.word_embeddings.weight", "cls.predictions.bias"}


def test_rows_of_a_wider_dtype_widen_the_table_exactly(
    tiny_pool: TinyPool, grow: Grow, tmp_path: Path
) -> None:
    # The rows that `math` lacks must equal those of `code`, which bfloat16 cannot hold.
    math = grow(tiny_pool.checkpoints["math"], dtype=torch.bfloat16)
    code = grow(tiny_pool.checkpoints["code"], rows=262, tokens=("<a>", "<b>", "<c>"))
    sources = pool_of(tiny_pool.base, math=math, code=code)
    decided = decide_vocabulary(sources, "pad")
    readers = open_readers(sources, decided)
    assert readers["math"].entries[EMBEDDINGS].dtype == "float32"
    assert torch.equal(readers["math"].tensor(EMBEDDINGS)[ROWS:], table(code)[ROWS:])
    tensors = merged(sources, recipe_of(sources, [5.0, 0.0], vocabulary=decided), tmp_path / "out")
    assert torch.equal(tensors[EMBEDDINGS][ROWS:], table(code)[ROWS:])


def test_padded_tables_of_one_length_take_the_token_from_who_has_it(
    tiny_pool: TinyPool, grow: Grow, tmp_path: Path
) -> None:
    base = grow(tiny_pool.base, rows=264, name="padded")
    code = grow(tiny_pool.checkpoints["code"], rows=264, tokens=("<a>",))
    sources = pool_of(base, code=code)
    with pytest.raises(IncompatibleCheckpointsError, match="1 of 260 tokens differ"):
        check_compatible(sources, Merge())
    decided = decide_vocabulary(sources, "pad")
    assert decided is not None
    assert (decided.rows, decided.source.name) == (264, "code")
    tensors = merged(sources, recipe_of(sources, [0.25], vocabulary=decided), tmp_path / "out")
    assert torch.equal(tensors[EMBEDDINGS][259], table(code)[259])
    padding = table(base)[260:] + 0.25 * (table(code)[260:] - table(base)[260:])
    torch.testing.assert_close(tensors[EMBEDDINGS][260:], padding)
    kept = merged(
        sources,
        recipe_of(sources, [0.25], vocabulary=decide_vocabulary(sources, "intersect")),
        tmp_path / "intersect",
    )
    assert kept[EMBEDDINGS].shape == (264, 32)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "intersect")) == 259


def test_linear_merge_without_a_base_takes_missing_rows_from_the_first_that_has_them(
    tiny_pool: TinyPool, grow: Grow, tmp_path: Path
) -> None:
    code = grow(tiny_pool.checkpoints["code"], rows=260, tokens=("<a>",))
    sources = pool_of(None, math=tiny_pool.checkpoints["math"], code=code)
    decided = decide_vocabulary(sources, "pad")
    tensors = merged(sources, recipe_of(sources, [0.5, 0.5], vocabulary=decided), tmp_path / "out")
    assert torch.equal(tensors[EMBEDDINGS][259], table(code)[259])


def test_live_model_and_export_have_the_same_bits_and_tokenizer(
    tiny_pool: TinyPool, tiny_job: Callable[..., JobConfig], grow: Grow, tmp_path: Path
) -> None:
    code = grow(tiny_pool.checkpoints["code"], rows=264, tokens=("<a>", "<b>"))
    generation = {"max_length": 99, "eos_token_id": [2, 260], "pad_token_id": 0}
    (code / "generation_config.json").write_text(json.dumps(generation))
    config = json.loads((code / "config.json").read_text())
    (code / "config.json").write_text(json.dumps(config | {"eos_token_id": 260}))
    sources = pool_of(tiny_pool.base, math=tiny_pool.checkpoints["math"], code=code)
    decided = decide_vocabulary(sources, "pad")
    recipe = recipe_of(sources, [0.5, 0.3], vocabulary=decided)
    models = {
        "base": str(tiny_pool.base),
        "checkpoints": {"math": str(tiny_pool.checkpoints["math"]), "code": str(code)},
        "vocabulary": "pad",
    }
    live = load_live_model(WorkerSpec(tiny_job(models=models), sources, Manifest({}, {})), None)
    model = live.model
    materializer = Materializer(sources)
    materializer.into(model, recipe)
    assert materializer.digest_of(model) == write_checkpoint(recipe, sources, tmp_path / "out")
    exported = LlamaForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(exported.lm_head.weight, model.lm_head.weight)
    for loaded in (exported, model):
        assert loaded.config.vocab_size == 264
        assert loaded.config.eos_token_id == 260
        assert loaded.generation_config.eos_token_id == [2, 260]
        assert loaded.generation_config.max_length == 99
    for tokenizer in (AutoTokenizer.from_pretrained(tmp_path / "out"), live.tokenizer):
        assert tokenizer("<b>", add_special_tokens=False)["input_ids"] == [260]


def test_learned_merge_of_longer_tables_has_the_same_bits_live_and_exported(
    tiny_pool: TinyPool, grow: Grow, tmp_path: Path
) -> None:
    sources = pool_of(
        tiny_pool.base,
        math=grow(tiny_pool.checkpoints["math"], rows=264),
        code=tiny_pool.checkpoints["code"],
    )
    decided = decide_vocabulary(sources, "pad")
    # Columns of a table are no tokens: their number is that of every model.
    recipe = write_learned(tmp_path / "dam", sources, vocabulary=decided)
    sources = with_coefficients(sources, recipe, tmp_path / "dam")
    check_coefficients(recipe, sources)
    tensors = merged(sources, recipe, tmp_path / "out")
    assert tensors[EMBEDDINGS].shape == (264, 32)
    numbers = load_file(tmp_path / "dam" / "coefficients.safetensors")
    longer = table(sources.checkpoints[0].directory)[262] * numbers[f"0.{EMBEDDINGS}"]
    # The row that only one has is its own in all of them.
    longer = longer + table(sources.checkpoints[0].directory)[262] * numbers[f"1.{EMBEDDINGS}"]
    assert torch.equal(tensors[EMBEDDINGS][262], longer)


def test_materializer_goes_from_one_vocabulary_to_another_and_back(
    tiny_pool: TinyPool, grow: Grow
) -> None:
    sources = pool_of(tiny_pool.base, code=grow(tiny_pool.checkpoints["code"], rows=264))
    materializer, digests = Materializer(sources), []
    for policy in ("pad", "intersect", "pad"):
        decided = decide_vocabulary(sources, policy)
        assert decided is not None
        model = LlamaForCausalLM.from_pretrained(tiny_pool.base)
        model.resize_token_embeddings(decided.rows, mean_resizing=False)
        materializer.into(model, recipe_of(sources, [0.5], vocabulary=decided))
        digests.append(materializer.digest_of(model))
    assert digests[0] == digests[2] != digests[1]


def test_recipe_id_depends_on_the_vocabulary_and_not_on_its_names(
    tiny_pool: TinyPool, grow: Grow
) -> None:
    sources = pool_of(tiny_pool.base, code=grow(tiny_pool.checkpoints["code"], rows=262))
    pad, intersect = (decide_vocabulary(sources, policy) for policy in ("pad", "intersect"))
    assert pad is not None
    recipe = recipe_of(sources, [0.5], vocabulary=pad)
    renamed = pad.model_copy(update={"source": pad.source.model_copy(update={"name": "x"})})
    assert recipe.model_copy(update={"vocabulary": renamed}).recipe_id == recipe.recipe_id
    assert recipe.model_copy(update={"vocabulary": intersect}).recipe_id != recipe.recipe_id
    assert MergeRecipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_rows_that_are_only_cut_stay_memory_mapped(tiny_pool: TinyPool, grow: Grow) -> None:
    code = grow(tiny_pool.checkpoints["code"], rows=264)
    sources = pool_of(tiny_pool.base, code=code)
    readers = open_readers(sources, decide_vocabulary(sources, "intersect"))
    tensor = readers["code"].tensor(EMBEDDINGS)
    assert tensor.shape == (ROWS, 32)
    whole = CheckpointReader(code).tensor(EMBEDDINGS)
    assert tensor.untyped_storage().nbytes() == whole.untyped_storage().nbytes()
    assert torch.equal(tensor, table(code)[:ROWS])
    assert readers["code"].is_mapped(EMBEDDINGS)
    assert readers["code"].size_bytes == readers["base"].size_bytes
    for reader in readers.values():
        reader.close()


def test_tables_that_take_turns_are_joined_once(tiny_pool: TinyPool, grow: Grow) -> None:
    base = grow(tiny_pool.base, tied=False)
    code = grow(tiny_pool.checkpoints["code"], rows=264, tied=False)
    sources = pool_of(base, code=code)
    readers = open_readers(sources, decide_vocabulary(sources, "pad"))
    joined = [readers["base"].tensor(name) for name in (EMBEDDINGS, HEAD)]
    again = [readers["base"].tensor(name) for name in (EMBEDDINGS, HEAD)]
    assert all(one is other for one, other in zip(joined, again, strict=True))
    assert not any(readers["base"].is_mapped(name) for name in (EMBEDDINGS, HEAD))
    assert all(
        torch.equal(tensor[ROWS:], table(code, name)[ROWS:])
        for tensor, name in zip(joined, (EMBEDDINGS, HEAD), strict=True)
    )
    for reader in readers.values():
        reader.close()


def test_fitted_checkpoint_is_otherwise_the_one_in_the_files(
    tiny_pool: TinyPool, grow: Grow
) -> None:
    code = grow(tiny_pool.checkpoints["code"], rows=264)
    sources = pool_of(tiny_pool.base, code=code)
    fitted = open_readers(sources, decide_vocabulary(sources, "pad"))["base"]
    with CheckpointReader(tiny_pool.base) as plain:
        assert (fitted.files, fitted.dtype, fitted.duplicates) == (
            plain.files, plain.dtype, plain.duplicates,
        )  # fmt: skip
        name = "model.norm.weight"
        assert torch.equal(fitted.stored_tensor(name), plain.stored_tensor(name))
        with pytest.raises(KeyError):
            fitted.tensor("no.such.weight")
    fitted.close()
    assert torch.equal(fitted.tensor(EMBEDDINGS)[:ROWS], table(tiny_pool.base))
    fitted.close()
