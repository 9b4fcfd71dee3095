"""LoRA adapters as checkpoints, against what peft itself makes of them."""

import json
import shutil
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    PreTrainedModel,
)

from configs.errors import CheckpointError, CheckpointNotFoundError
from tests.conftest import TinyPool
from tests.small_models import pool_of, recipe_of, small_bert
from tests.unit.workers.lora_adapters import ATTENTION, Make, merged_by_us
from workers.checkpoint import CheckpointReader
from workers.digest import source_digest
from workers.lora import Adapter, add_low_rank
from workers.merged_checkpoint import write_checkpoint

pytestmark = pytest.mark.usefixtures("own_cache")


def adapted_by_peft(
    base: Path, adapter: Path, model_class: type[PreTrainedModel] = LlamaForCausalLM
) -> Any:
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = model_class.from_pretrained(base, dtype=torch.float32)
        return PeftModel.from_pretrained(model, adapter).eval()


def merged_by_peft(*args: Any) -> PreTrainedModel:
    return adapted_by_peft(*args).merge_and_unload()


CASES = {
    "alpha_over_r": {"r": 4, "lora_alpha": 12, "target_modules": ATTENTION},
    "rank_stabilized": {"r": 4, "lora_alpha": 12, "use_rslora": True, "target_modules": ATTENTION},
    "patterns": {
        "r": 4,
        "lora_alpha": 12,
        "target_modules": [*ATTENTION, "up_proj", "down_proj"],
        "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\..*": 6, "proj": 7},
        "alpha_pattern": {r"^model\.layers\.0\.self_attn\.v_proj": 5, "down_proj": 3},
    },
    "modules_to_save": {"r": 2, "target_modules": ATTENTION, "modules_to_save": ["lm_head"]},
    "embeddings": {"r": 3, "lora_alpha": 6, "target_modules": ["embed_tokens", "lm_head"]},
}


@pytest.mark.parametrize("case", CASES)
def test_merged_adapter_is_what_peft_merges(
    untied_base: Path, make_adapter: Make, case: str
) -> None:
    adapter = make_adapter(untied_base, **CASES[case])
    expected = merged_by_peft(untied_base, adapter).state_dict()
    base = load_file(untied_base / "model.safetensors")
    with CheckpointReader(merged_by_us(untied_base, adapter)) as reader:
        assert reader.entries.keys() == expected.keys()
        assert any(not torch.equal(reader.tensor(name), base[name]) for name in base)
        for name, tensor in expected.items():
            torch.testing.assert_close(reader.tensor(name), tensor, rtol=1e-6, atol=1e-6)


def test_embeddings_as_long_as_wide_are_not_transposed(
    tiny_pool: TinyPool, make_adapter: Make, tmp_path: Path
) -> None:
    config = LlamaForCausalLM.from_pretrained(tiny_pool.base).config
    config.update({"vocab_size": config.hidden_size, "tie_word_embeddings": False})
    LlamaForCausalLM(config).save_pretrained(tmp_path / "square")
    adapter = make_adapter(tmp_path / "square", r=3, target_modules=["embed_tokens"])
    expected = merged_by_peft(tmp_path / "square", adapter).get_input_embeddings().weight
    with CheckpointReader(merged_by_us(tmp_path / "square", adapter)) as reader:
        torch.testing.assert_close(
            reader.tensor("model.embed_tokens.weight"), expected.data, rtol=1e-6, atol=1e-6
        )


def test_adapter_of_layers_stored_in_by_out_is_what_peft_merges(
    make_adapter: Make, tmp_path: Path
) -> None:
    config = GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    adapter = make_adapter(
        tmp_path / "gpt2",
        model_class=GPT2LMHeadModel,
        r=3,
        fan_in_fan_out=True,
        # c_attn is 16 x 48; attn.c_proj is square, which only the flag can tell.
        target_modules=["c_attn", "attn.c_proj"],
    )
    expected = merged_by_peft(tmp_path / "gpt2", adapter, GPT2LMHeadModel).state_dict()
    with CheckpointReader(merged_by_us(tmp_path / "gpt2", adapter)) as reader:
        for name in reader.entries:
            torch.testing.assert_close(reader.tensor(name), expected[name], rtol=1e-6, atol=1e-6)


def test_merged_adapter_generates_what_the_adapted_model_does(
    tiny_pool: TinyPool, make_adapter: Make
) -> None:
    adapter = make_adapter(tiny_pool.base, r=4, lora_alpha=32, target_modules=ATTENTION)
    plain = LlamaForCausalLM.from_pretrained(tiny_pool.base).eval()
    ours = LlamaForCausalLM.from_pretrained(merged_by_us(tiny_pool.base, adapter)).eval()
    prompt = torch.arange(60, 80).reshape(2, 10)

    def generated(model: Any) -> list[list[int]]:
        tokens = model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=12,
            do_sample=False,
        )
        return tokens.tolist()

    before = generated(plain)
    adapted = generated(adapted_by_peft(tiny_pool.base, adapter))
    assert adapted != before, "the adapter changes nothing"
    assert generated(ours) == adapted


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_result_is_rounded_once_to_the_dtype_of_the_base(dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    base = (torch.randn(300, 70, generator=draw)).to(dtype)
    left, right = (torch.randn(shape, generator=draw) for shape in ((300, 5), (5, 70)))
    merged = add_low_rank(base, left, right, 0.3)
    exact = base.double() + 0.3 * (left.double() @ right.double())
    # The nearest number: none of the neighbours is nearer.
    error = (merged.double() - exact).abs()
    for step in (-1, 1):
        neighbour = (merged.view(torch.int16) + step).view(dtype).double()
        assert bool((error <= (neighbour - exact).abs()).all())


def test_rounding_twice_would_be_off() -> None:
    # Just above the middle of two bfloat16 numbers: float32 would round it onto the middle.
    base = torch.tensor([[1.0]], dtype=torch.bfloat16)
    left, right = torch.tensor([[2.0**-8]]), torch.tensor([[1.0 + 2.0**-20]])
    assert float(add_low_rank(base, left, right, 1.0)) == 1.0 + 2.0**-7
    assert float(add_low_rank(-base, -left, right, 1.0)) == -1.0 - 2.0**-7
    assert (torch.tensor(1.0 + 2.0**-8 * (1 + 2.0**-20), dtype=torch.float64)).bfloat16() == 1.0


def test_two_adapters_of_rank_one_by_hand(make_checkpoint: Make, tmp_path: Path) -> None:
    base = make_checkpoint("base", {"layer.weight": torch.tensor([[1.0, 2.0], [3.0, 4.0]])})

    def adapter(name: str, alpha: float, b: list[float], a: list[float]) -> Path:
        directory = tmp_path / name
        directory.mkdir()
        config = {"peft_type": "LORA", "r": 1, "lora_alpha": alpha}
        (directory / "adapter_config.json").write_text(json.dumps(config))
        factors = {"lora_B": torch.tensor(b)[:, None], "lora_A": torch.tensor(a)[None]}
        save_file(
            {f"base_model.model.layer.{side}.weight": one for side, one in factors.items()},
            directory / "adapter_model.safetensors",
        )
        return directory

    # s B A is 2 (1, 0)' (1, 2) = (2, 4 / 0, 0) and 1/2 (2, 4)' (1, -1) = (1, -1 / 2, -2).
    first = adapter("first", 2.0, [1.0, 0.0], [1.0, 2.0])
    second = adapter("second", 0.5, [2.0, 4.0], [1.0, -1.0])
    sources = pool_of(base, first=first, second=second)
    with CheckpointReader(sources.checkpoints[1].directory) as reader:
        assert reader.tensor("layer.weight").tolist() == [[2.0, 1.0], [5.0, 2.0]]
    recipe = recipe_of(sources, [0.5, 2.0], method="task_arithmetic")
    write_checkpoint(recipe, sources, tmp_path / "merged")
    # 1 + 1 + 2, 2 + 2 - 2;  3 + 0 + 4, 4 + 0 - 4
    merged = load_file(tmp_path / "merged" / "model.safetensors")["layer.weight"]
    assert merged.tolist() == [[4.0, 2.0], [7.0, 0.0]]


def test_large_tensors_are_computed_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    base, left, right = torch.randn(31, 9), torch.randn(31, 2), torch.randn(2, 9)
    whole = add_low_rank(base, left, right, 1.5)
    monkeypatch.setattr("workers.lora._CHUNK_ELEMENTS", 20)
    torch.testing.assert_close(add_low_rank(base, left, right, 1.5), whole, rtol=0, atol=1e-7)


def test_adapter_is_merged_once_and_keyed_by_what_it_depends_on(
    tiny_pool: TinyPool, make_adapter: Make, tmp_path: Path
) -> None:
    adapter = make_adapter(tiny_pool.base, r=2, target_modules=ATTENTION)
    first = merged_by_us(tiny_pool.base, adapter)
    assert first.is_relative_to(tmp_path / "cache" / "mergefront" / "adapters")
    written = (first / "model.safetensors").stat()
    moved = tmp_path / "moved"
    shutil.move(adapter, moved)
    assert merged_by_us(tiny_pool.base, moved) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == written.st_mtime_ns
    config = json.loads((moved / "adapter_config.json").read_text())
    (moved / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 99}))
    second = merged_by_us(tiny_pool.base, moved)
    assert second != first
    assert merged_by_us(tiny_pool.checkpoints["math"], moved) != second


def test_merge_never_holds_the_model(make_checkpoint: Make, tmp_path: Path) -> None:
    from workers.checkpoint_writer import CheckpointWriter

    side, count = 1024, 30
    names = [f"layers.{index}.w" for index in range(count)]
    base = make_checkpoint("large", {f"{name}.weight": torch.zeros(side, side) for name in names})
    factors = {
        f"base_model.model.{name}.lora_{factor}.weight": torch.ones(shape)
        for name in names
        for factor, shape in (("A", (2, side)), ("B", (side, 2)))
    }
    (tmp_path / "small").mkdir()
    save_file(factors, tmp_path / "small" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
    (tmp_path / "small" / "adapter_config.json").write_text(json.dumps(config))
    anonymous: list[int] = []
    write = CheckpointWriter.write

    def measured(writer: CheckpointWriter, name: str, data: memoryview) -> None:
        status = Path("/proc/self/status").read_text()
        anonymous.append(int(status.split("RssAnon:")[1].split()[0]) * 1024)
        write(writer, name, data)

    with CheckpointReader(base) as reader, pytest.MonkeyPatch.context() as patch:
        patch.setattr(CheckpointWriter, "write", measured)
        merged = Adapter(tmp_path / "small", reader).merge()
        # A tensor has 4 MiB, the memory of the file 48, the model 120.
        assert max(anonymous[1:]) - anonymous[0] < 70 * 2**20
        assert len(anonymous) == count
    with CheckpointReader(merged) as result:
        assert bool((result.tensor(f"{names[3]}.weight") == 4.0).all())


def test_processes_that_want_the_same_adapter_make_it_once(
    tiny_pool: TinyPool, make_adapter: Make
) -> None:
    adapter = make_adapter(tiny_pool.base, r=2, target_modules=ATTENTION)
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(merged_by_us(tiny_pool.base, adapter)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    names = {path.name for path in found[0].parent.iterdir()}
    assert names == {found[0].name, f"{found[0].name}.lock"}


def test_machines_that_share_a_cache_and_no_locks_make_the_same_adapter(
    tiny_pool: TinyPool, make_adapter: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = make_adapter(tiny_pool.base, r=2, target_modules=ATTENTION)
    write = Adapter._write

    def while_another_writes_too(self: Adapter, target: Path, *arguments: Any) -> None:
        is_first = not target.exists()
        if is_first:
            write(self, target, *arguments)
        write(self, target, *arguments)

    monkeypatch.setattr(Adapter, "_write", while_another_writes_too)
    with CheckpointReader(merged_by_us(tiny_pool.base, adapter)) as reader:
        assert reader.entries


def test_interrupted_merge_leaves_nothing_under_the_name(
    tiny_pool: TinyPool, make_adapter: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    adapter = make_adapter(tiny_pool.base, r=2, target_modules=ATTENTION)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("workers.shard_file.ShardFile.write", fail)
        with pytest.raises(CheckpointError, match="No space left on device"):
            merged_by_us(tiny_pool.base, adapter)
    cache = tmp_path / "cache" / "mergefront" / "adapters"
    assert [path.suffix for path in cache.iterdir()] == [".lock"]
    with CheckpointReader(merged_by_us(tiny_pool.base, adapter)) as reader:
        assert reader.entries


def test_merged_adapter_has_the_tokenizer_of_the_adapter(
    tiny_pool: TinyPool, make_adapter: Make
) -> None:
    adapter = make_adapter(tiny_pool.base, r=2, target_modules=ATTENTION)
    merged = merged_by_us(tiny_pool.base, adapter)
    for name in ("config.json", "tokenizer.json", "generation_config.json"):
        assert (merged / name).read_bytes() == (tiny_pool.base / name).read_bytes()
    tokenizer = AutoTokenizer.from_pretrained(tiny_pool.base)
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(adapter)
    again = merged_by_us(tiny_pool.base, adapter)
    assert again != merged
    assert AutoTokenizer.from_pretrained(again).chat_template == "{{ messages }}"


def test_merged_adapter_that_was_removed_says_how_to_get_it_back(
    tiny_pool: TinyPool, make_adapter: Make
) -> None:
    adapter = make_adapter(tiny_pool.base, r=2, target_modules=ATTENTION)
    merged = merged_by_us(tiny_pool.base, adapter)
    with CheckpointReader(merged) as reader:
        before = source_digest(reader)
    shutil.rmtree(merged)
    with pytest.raises(CheckpointNotFoundError, match="`mergefront check` on the job makes it"):
        CheckpointReader(merged)
    with CheckpointReader(merged_by_us(tiny_pool.base, adapter)) as reader:
        assert reader.directory == merged
        assert source_digest(reader) == before


def test_adapter_of_an_encoder_with_a_classifier_is_what_peft_merges(
    make_adapter: Make, tmp_path: Path
) -> None:
    small_bert("BertForSequenceClassification").save_pretrained(tmp_path / "bert")
    adapter = make_adapter(
        tmp_path / "bert",
        model_class=BertForSequenceClassification,
        task_type="SEQ_CLS",
        r=2,
        target_modules=["query", "value", "word_embeddings"],
    )
    model = merged_by_peft(tmp_path / "bert", adapter, BertForSequenceClassification)
    expected = model.state_dict()
    base = load_file(tmp_path / "bert" / "model.safetensors")
    changed = {"classifier.weight", "bert.embeddings.word_embeddings.weight"}
    with CheckpointReader(merged_by_us(tmp_path / "bert", adapter)) as reader:
        for name in reader.entries:
            torch.testing.assert_close(reader.tensor(name), expected[name], rtol=1e-6, atol=1e-6)
        assert not any(torch.equal(reader.tensor(name), base[name]) for name in changed)
