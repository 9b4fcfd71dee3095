"""What ``scripts.bench.evaluate`` measures on: a live model, its checkpoints, tasks and items.

Start at :func:`zoo_workload` and :func:`real_workload`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import lm_eval
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
from scripts.zoo.item import SKILLS

Weights = Mapping[str, torch.Tensor]

ROOT = Path(__file__).resolve().parents[2]
ZOO_METRICS = {"instruct": "constraint_acc", "code": "pass_at_1", "math": "exact_match"}

# The stock definitions on local files; `repr` of a path is YAML for it.
STOCK_TASKS = {
    "bench_gsm8k": """
include: {stock}/gsm8k/gsm8k.yaml
task: bench_gsm8k
dataset_path: json
dataset_name: null
dataset_kwargs: {{data_files: {{train: {data}/gsm8k/train.jsonl, test: {data}/gsm8k/test.jsonl}}}}
num_fewshot: 0
generation_kwargs:
  until: ["Question:", "</s>", "<|im_end|>"]
  do_sample: false
  temperature: 0.0
  max_gen_toks: {limit}
""",
    "bench_ifeval": """
include: {stock}/ifeval/ifeval.yaml
task: bench_ifeval
dataset_path: json
dataset_name: null
dataset_kwargs: {{data_files: {{train: {data}/ifeval/train.jsonl}}}}
generation_kwargs: {{until: [], do_sample: false, temperature: 0.0, max_gen_toks: {limit}}}
""",
    "bench_humaneval": """
include: {stock}/humaneval/humaneval.yaml
task: bench_humaneval
dataset_path: json
dataset_name: null
dataset_kwargs: {{data_files: {{test: {data}/humaneval/test.jsonl}}}}
generation_kwargs:
  until: ["\\nclass", "\\ndef", "\\n#", "\\nif", "\\nprint"]
  max_gen_toks: {limit}
  do_sample: false
""",
}
STOCK_METRICS = {
    "bench_gsm8k": "exact_match,flexible-extract",
    "bench_ifeval": "prompt_level_strict_acc,none",
    "bench_humaneval": "pass@1,create_test",
}
END, PAD = "<|end|>", "<|pad|>"


@dataclass(frozen=True, slots=True)
class Workload:
    """A live model, weights to swap into it, and what to score it on.

    Attributes:
        live: The model whose weights change.
        candidates: Tensors by name, one set per candidate.
        objectives: What is scored.
        settings: With the batch size, which is the stock harness's too.
    """

    live: LiveModel
    candidates: tuple[Weights, ...]
    objectives: Mapping[str, Objective]
    settings: EvaluationSettings

    def swap(self, index: int) -> None:
        """Write a candidate into the live model."""
        with torch.no_grad():
            for name, parameter in self.live.model.named_parameters():
                parameter.copy_(self.candidates[index % len(self.candidates)][name])


def zoo_workload(zoo: Path, items: int, batch_size: int) -> Workload:
    """Score the zoo's checkpoints and their mean on its three skills, ``items`` of each."""
    settings = EvaluationSettings(
        include_path=[str(ROOT / "evaluators/tasks/zoo")],
        data_dir=str(zoo),
        splits=SplitSizes(search=items, select=1, report=1),
        batch_size=batch_size,
        allow_code_execution=True,
    )
    objectives: dict[str, Objective] = {
        skill: _objective(f"zoo_{skill}", ZOO_METRICS[skill]) for skill in SKILLS
    }
    models_ = [AutoModelForCausalLM.from_pretrained(zoo / skill) for skill in SKILLS]
    weights = [dict(model.named_parameters()) for model in models_]
    with torch.no_grad():
        mean = {name: torch.stack([w[name] for w in weights]).mean(0) for name in weights[0]}
    live = LiveModel(
        AutoModelForCausalLM.from_pretrained(zoo / "base").train(mode=False),
        AutoTokenizer.from_pretrained(zoo / "base"),
    )
    return Workload(live, (mean, *weights), objectives, settings)


def real_workload(
    data: Path, tasks: Path, *, items: int, limit: int, end_scale: float, batch_size: int
) -> Workload:
    """Score random models of 20 M parameters on prompts of gsm8k, ifeval and humaneval.

    Args:
        data: Directory with the items.
        tasks: Directory that the task files are written to.
        items: Items per task.
        limit: Most tokens generated per item.
        end_scale: Factor on the logit of the end of text; 1 ends a text at its limit mostly.
        batch_size: Rows per forward pass.
    """
    stock = Path(lm_eval.__file__).parent / "tasks"
    for name, text in STOCK_TASKS.items():
        (tasks / f"{name}.yaml").write_text(text.format(stock=stock, data=data, limit=limit))
    settings = EvaluationSettings(
        include_path=[str(tasks)],
        splits=SplitSizes(search=items, select=1, report=1),
        batch_size=batch_size,
        allow_code_execution=True,
    )
    objectives = {name: _objective(name, metric) for name, metric in STOCK_METRICS.items()}
    tokenizer = train_tokenizer(data)
    made = [random_model(len(tokenizer), end_scale, seed) for seed in range(3)]
    weights = tuple(dict(model.named_parameters()) for model in made[1:])
    return Workload(LiveModel(made[0], tokenizer), weights, objectives, settings)


def _objective(task: str, metric: str) -> Objective:
    return Objective.model_validate({"tasks": [{"task": task, "metric": metric}]})


def train_tokenizer(data: Path, vocabulary: int = 8192) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on the items' own texts, in seconds."""
    texts: list[str] = []
    for path in sorted(data.glob("*/*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            texts.extend(str(value) for value in json.loads(line).values())
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
    )


def random_model(vocabulary: int, end_scale: float, seed: int) -> LlamaForCausalLM:
    """Make a random model of 20 M parameters whose texts end at any length."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=1,
        initializer_range=0.3,
    )
    # transformers initializes weights from the global state and takes no generator; `fork_rng` puts
    # that state back.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # noqa: TID251
        model = LlamaForCausalLM(config)
    model.train(mode=False)
    with torch.no_grad():
        model.lm_head.weight[0] *= end_scale
    return model
