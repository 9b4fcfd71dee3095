"""Fixtures and rules for all tests: offline, tiny real models, one local Ray per session."""

import itertools
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

# A loaded machine is slow, which is no failure of the code. A gate gives the same answer for the
# same commit, so it draws the same examples; everywhere else they are new ones each time.
settings.register_profile("mergefront", deadline=None)
settings.register_profile("gate", deadline=None, derandomize=True, database=None)
settings.load_profile("gate" if os.environ.get("CI") else "mergefront")

# Set before any Hugging Face library is imported, which is when they are read.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Digests of test checkpoints and prepared datasets stay out of the user's cache.
_cache = tempfile.TemporaryDirectory(prefix="mergefront-tests-")
os.environ["XDG_CACHE_HOME"] = _cache.name

if TYPE_CHECKING:
    import torch

    from configs.schema import JobConfig
    from tests.postgres_server import PostgresServer

DATA_VARIABLE = "MERGEFRONT_DATA"

_TINY_TASK = """
dataset_path: json
dataset_kwargs: {data_files: {test: items.jsonl}}
test_split: test
doc_to_text: prompt
"""
TINY_TASKS = {
    # Random weights never say the answer, but the texts of two merges differ.
    "tiny_text": _TINY_TASK
    + """
output_type: generate_until
doc_to_target: answer
generation_kwargs: {until: ["\\n"], do_sample: false, max_gen_toks: 6}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
    "tiny_choice": _TINY_TASK
    + """
output_type: multiple_choice
doc_to_target: "{{words.index(answer)}}"
doc_to_choice: "{{words}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
}


@dataclass(frozen=True)
class TinyPool:
    """A base and the checkpoints tuned from it, as Hugging Face directories."""

    base: Path
    checkpoints: dict[str, Path]

    @property
    def models(self) -> dict[str, object]:
        """The ``models`` section of a job."""
        return {
            "base": str(self.base),
            "checkpoints": {name: str(path) for name, path in self.checkpoints.items()},
        }


@pytest.fixture(scope="session")
def tiny_pool(tmp_path_factory: pytest.TempPathFactory) -> TinyPool:
    """A base and three checkpoints: Llama, 2 layers, width 32, tied, random float32 weights.

    Shared by the whole session: copy a directory before changing anything in it.
    """
    import torch

    root = tmp_path_factory.mktemp("pool")
    draw = torch.Generator().manual_seed(0)
    tokenizer = _byte_tokenizer()
    model = _tiny_llama(len(tokenizer))
    # Copies: state_dict() gives the live tensors, which the next checkpoint overwrites.
    weights = {
        name: tensor.clone() if "norm" in name else _normal(tensor, 0.08, draw)
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    directories = [root / name for name in ("base", "instruct", "code", "math")]
    for directory in directories:
        is_base = directory.name == "base"
        tuned = {
            name: base if is_base else base + _normal(base, 0.004, draw)
            for name, base in weights.items()
        }
        model.load_state_dict(tuned, strict=False)
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
    return TinyPool(directories[0], {path.name: path for path in directories[1:]})


@pytest.fixture(scope="session")
def tiny_job(
    tiny_pool: TinyPool, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., "JobConfig"]:
    """Makes jobs that merge the tiny pool for two tasks: continuing a text, choosing a word.

    Keyword arguments replace sections of the job; ``archive`` is a new file each time.
    """
    from configs.schema import JobConfig

    root = tmp_path_factory.mktemp("tasks")
    for name, text in TINY_TASKS.items():
        (root / f"{name}.yaml").write_text(f"task: {name}\n{text}")
    (root / "items.jsonl").write_text(
        "".join(
            json.dumps({"prompt": f"{first} {second} then", "answer": third, "words": list(order)})
            + "\n"
            for order in itertools.permutations(("red", "green", "blue", "grey"), 3)
            for first, second, third in [order]
        )
    )

    def make(**sections: object) -> JobConfig:
        content = {
            "models": tiny_pool.models,
            "objectives": {"text": "tiny_text", "choice": "tiny_choice"},
            "evaluation": {
                "include_path": [str(root)],
                "data_dir": str(root),
                "splits": {"search": 8, "select": 4, "report": 4},
                "batch_size": 4,
            },
            "archive": str(tmp_path_factory.mktemp("run") / "archive.sqlite"),
        }
        return JobConfig.model_validate(content | sections)

    return make


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Directory with the items of real benchmarks (gsm8k, humaneval, ifeval, mbpp)."""
    named = os.environ.get(DATA_VARIABLE)
    if not named:
        pytest.skip(f"{DATA_VARIABLE} is not set: no directory with benchmark items")
    path = Path(named)
    if not path.is_dir():
        pytest.fail(f"{DATA_VARIABLE}={named}: no such directory")
    return path.resolve()


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """One Ray on this machine for all tests of the session that share it."""
    from configs.worker_settings import WorkerSettings
    from workers.ray_session import ray_session

    with ray_session(WorkerSettings(count=4, cpus=1.0)):
        yield


@pytest.fixture(scope="session")
def postgres() -> Iterator["PostgresServer"]:
    """A PostgreSQL server for all tests of the session; each test makes databases of its own."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    from tests.postgres_server import PostgresServer, find_programs

    programs = find_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed here; `apt-get install postgresql` has it")
    with PostgresServer(programs) as server:
        yield server


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run, and say why."""
    if not any(item.get_closest_marker("gpu") for item in items):
        return
    import torch

    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="no CUDA device on this machine")
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(skip)


def _byte_tokenizer() -> "object":
    """A tokenizer of the 256 bytes and three special tokens: no training, any text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **dict(zip(("pad_token", "bos_token", "eos_token"), special, strict=True)),
    )


def _tiny_llama(vocabulary_size: int) -> "object":
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config).eval()


def _normal(like: "torch.Tensor", scale: float, draw: "torch.Generator") -> "torch.Tensor":
    import torch

    return torch.randn(like.shape, generator=draw) * scale
