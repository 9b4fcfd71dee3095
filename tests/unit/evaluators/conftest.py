"""A tiny random language model with its tokenizer, and tasks of every kind, on disk."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from configs.evaluation import EvaluationSettings, Objective, SplitSizes
from evaluators.evaluator import LiveModel

TEXT = "red blue green the sun moon star rain snow wind fire ice cat dog fox owl 1 2 3 40 57"
WORDS = TEXT.split()

SCORING = """
import random
LETTERS = set("aeiou1234")

def vowels(doc, results):
    text = results[0]
    return {"vowels": sum(c in LETTERS for c in text) / (1 + len(text)), "length": len(text)}

def nats(doc, results):
    return {"nats": results[0] / 100}

def lottery(doc, results):
    if doc["prompt"] == "changed":
        raise ValueError("this document was scored before")
    doc["prompt"] = "changed"
    fussy = results[0] if results[0] == "a word" else 1.0
    return {"drawn": random.random(), "text": results[0], "fussy": fussy}
"""

GENERATE = """
dataset_path: json
dataset_kwargs: {data_files: {test: items/DATA.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: prompt
doc_to_target: answer
generation_kwargs: {until: ["\\n", "the"], do_sample: false, max_gen_toks: 16}
"""

TASKS = {
    "tiny_text": GENERATE.replace("DATA", "text")
    + """
process_results: !function scoring.vowels
metric_list:
  - {metric: vowels, aggregation: mean, higher_is_better: true}
  - {metric: length, aggregation: mean, higher_is_better: false}
""",
    "tiny_match": GENERATE.replace("DATA", "text")
    + """
num_fewshot: 0
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
filter_list:
  - {name: digits, filter: [{function: regex, regex_pattern: "([0-9]+)"}, {function: take_first}]}
  - {name: whole, filter: [{function: take_first}]}
""",
    "tiny_lottery": GENERATE.replace("DATA", "text")
    + """
process_results: !function scoring.lottery
metric_list:
  - {metric: drawn, aggregation: mean, higher_is_better: true}
  - {metric: text, aggregation: mean, higher_is_better: true}
  - {metric: fussy, aggregation: mean, higher_is_better: true}
""",
    "tiny_shots": GENERATE.replace("DATA", "shots").replace(
        "{test:", "{train: items/text.jsonl, test:"
    )
    + """
training_split: train
fewshot_split: train
num_fewshot: 2
process_results: !function scoring.vowels
metric_list: [{metric: vowels, aggregation: mean, higher_is_better: true}]
""",
    "tiny_choice": """
dataset_path: json
dataset_kwargs: {data_files: {test: items/choice.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: prompt
doc_to_target: gold
doc_to_choice: choices
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
""",
    "tiny_mutual": """
include: tiny_choice.yaml
doc_to_text: "{{prompt}} "
target_delimiter: ""
metric_list: [{metric: acc_mutual_info, aggregation: mean, higher_is_better: true}]
""",
    "tiny_long": """
include: tiny_text.yaml
doc_to_text: long
metric_list: [{metric: vowels, aggregation: mean, higher_is_better: true}]
""",
    "tiny_f1": """
include: tiny_choice.yaml
metric_list: [{metric: f1, aggregation: f1, higher_is_better: true}]
""",
    "tiny_likelihood": """
dataset_path: json
dataset_kwargs: {data_files: {test: items/text.jsonl}}
test_split: test
output_type: loglikelihood
doc_to_text: prompt
doc_to_target: answer
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
""",
    "tiny_rolling": """
dataset_path: json
dataset_kwargs: {data_files: {test: items/text.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: long
process_results: !function scoring.nats
metric_list: [{metric: nats, aggregation: mean, higher_is_better: true}]
""",
}


def sentence(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words))


def text_item(rng: random.Random) -> dict[str, object]:
    return {
        "prompt": sentence(rng, rng.randint(3, 14)),
        "answer": rng.choice(WORDS),
        "long": sentence(rng, 90),
    }


def choice_item(rng: random.Random) -> dict[str, object]:
    choices = [*rng.sample(WORDS, 2), sentence(rng, 3)]
    return {"prompt": sentence(rng, 6), "choices": choices, "gold": rng.randrange(3)}


@pytest.fixture(scope="session")
def task_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Task YAMLs, their scorers and, under ``items/``, their data."""
    directory = tmp_path_factory.mktemp("tasks")
    rng = random.Random(0)
    (directory / "scoring.py").write_text(SCORING)
    for name, text in TASKS.items():
        (directory / f"{name}.yaml").write_text(f"task: {name}\n{text}")
    (directory / "items").mkdir()
    for name, make in (("text", text_item), ("shots", text_item), ("choice", choice_item)):
        lines = [json.dumps(make(rng)) for _ in range(30)]
        (directory / "items" / f"{name}.jsonl").write_text("\n".join(lines))
    return directory


@pytest.fixture(scope="session")
def settings(task_directory: Path) -> EvaluationSettings:
    return EvaluationSettings(
        include_path=[str(task_directory)],
        data_dir=str(task_directory),
        splits=SplitSizes(search=8, select=4, report=12),
        batch_size=6,
    )


@pytest.fixture(scope="session")
def objectives() -> dict[str, Objective]:
    return {
        "text": Objective(tasks=[{"task": "tiny_text", "metric": "vowels"}]),
        "match": Objective(tasks=[{"task": "tiny_match", "metric": "exact_match,digits"}]),
        "shots": Objective(tasks=["tiny_shots"]),
        "choice": Objective(tasks=[{"task": "tiny_choice", "metric": "acc_norm"}]),
        "likelihood": Objective(tasks=[{"task": "tiny_likelihood", "metric": "acc"}]),
        "rolling": Objective(tasks=["tiny_rolling"]),
        "mutual": Objective(tasks=["tiny_mutual"]),
        "long": Objective(tasks=["tiny_long"]),
    }


def make_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|end|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|end|>",  # noqa: S106 - a token of text
        pad_token="<|pad|>",  # noqa: S106 - a token of text
    )


def make_model(seed: int, max_positions: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=max_positions,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=1,
        initializer_range=0.4,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # noqa: TID251 - transformers initializes from the global state
        return LlamaForCausalLM(config).eval()


CheckpointWriter = Callable[..., Path]


@pytest.fixture(scope="session")
def write_checkpoint() -> CheckpointWriter:
    """Write a tiny random checkpoint and its tokenizer; returns its directory."""

    def write(directory: Path, seed: int, *, max_positions: int = 96) -> Path:
        make_model(seed, max_positions).save_pretrained(directory)
        make_tokenizer().save_pretrained(directory)
        return directory

    return write


@pytest.fixture(scope="session")
def model_directories(
    tmp_path_factory: pytest.TempPathFactory, write_checkpoint: CheckpointWriter
) -> list[Path]:
    """Three checkpoints of one architecture with one tokenizer."""
    return [write_checkpoint(tmp_path_factory.mktemp(f"model{n}"), n) for n in range(3)]


class SwappableModel(LiveModel):
    """A live model that takes another checkpoint's tensors, as a worker's does."""

    def swap(self, directory: Path) -> None:
        source = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).state_dict()
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(source[name])


@pytest.fixture(scope="session")
def load() -> Callable[[Path], SwappableModel]:
    """Load a checkpoint into a model of its own."""

    def load_one(directory: Path) -> SwappableModel:
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        return SwappableModel(model, AutoTokenizer.from_pretrained(directory))

    return load_one


@pytest.fixture
def live(load: Callable[[Path], SwappableModel], model_directories: list[Path]) -> SwappableModel:
    """The first checkpoint, loaded afresh."""
    return load(model_directories[0])


@pytest.fixture(autouse=True, scope="session")
def _few_threads() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def tokenizer_factory() -> Callable[[], PreTrainedTokenizerFast]:
    return make_tokenizer


@pytest.fixture
def own_tasks(task_directory: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(task_directory, tmp_path / "tasks"))
