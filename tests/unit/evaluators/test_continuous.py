"""Continuous batching of transformers as a backend: the texts of ours, also after a swap."""

import threading

import pytest
import torch
from transformers import ContinuousBatchingConfig

from configs.errors import EvaluationError
from evaluators.backend import GenerationBackend, Prompt
from evaluators.continuous import ContinuousBatches
from evaluators.generation import StaticBatches
from evaluators.harness import HarnessEvaluator

# Every call of the manager starts threads and takes a second.
pytestmark = pytest.mark.slow

BEGINNING = tuple(range(2, 60))
PROMPTS = [
    Prompt((*BEGINNING, *range(60 + 7 * n, 60 + 7 * n + 1 + n)), budget, ("\n", "he", "<|end|>"))
    for n, budget in enumerate((1, 12, 7, 16, 16, 12, 3, 16))
]


def shared_pages(model, prompts: list[Prompt]) -> list[list[int]]:
    """Continue prompts with a manager that lives on and shares pages, as transformers would."""
    config = ContinuousBatchingConfig(
        page_size=32, num_blocks=64, max_batch_tokens=256, allow_block_sharing=True
    )
    outputs = model.generate_batch(
        [list(prompt.token_ids) for prompt in prompts],
        continuous_batching_config=config,
        persistent_manager=True,
        max_new_tokens=12,
    )
    return [output.generated_tokens for output in outputs.values()]


@pytest.mark.parametrize("batch_size", [3, 64])
def test_texts_equal_those_of_static_batches_and_are_told_once(live, batch_size) -> None:
    told: dict[int, str] = {}
    backend: GenerationBackend = ContinuousBatches(live, batch_size=batch_size)
    texts = backend.generate(
        PROMPTS, lambda index, text: told.update({index: told.get(index, "") + text})
    )
    assert texts == StaticBatches(live, batch_size=4).generate(PROMPTS)
    assert [told[index] for index in range(len(PROMPTS))] == texts
    assert len(set(texts)) > 4
    assert backend.generate([]) == []


def test_texts_are_those_of_the_new_weights_after_a_swap(live, model_directories) -> None:
    backend = ContinuousBatches(live, batch_size=4)
    before = backend.generate(PROMPTS)
    live.swap(model_directories[1])
    backend.weights_changed()
    after = backend.generate(PROMPTS)
    assert after == StaticBatches(live, batch_size=4).generate(PROMPTS)
    assert sum(a != b for a, b in zip(after, before, strict=True)) > 4


def test_manager_that_shares_pages_gives_stale_tokens_after_a_swap(
    live, load, model_directories
) -> None:
    # Why sharing is off: if this fails, transformers has learned to notice.
    shared_pages(live.model, PROMPTS)
    live.swap(model_directories[1])
    stale = shared_pages(live.model, PROMPTS)
    live.model.destroy_cached_continuous_batching_manager()
    fresh_model = load(model_directories[1]).model
    fresh = shared_pages(fresh_model, PROMPTS)
    fresh_model.destroy_cached_continuous_batching_manager()
    assert stale != fresh


def test_no_thread_outlives_a_call(live) -> None:
    before = set(threading.enumerate())
    ContinuousBatches(live, batch_size=4).generate(PROMPTS)
    assert set(threading.enumerate()) <= before


def test_generation_fails_when_logits_are_not_finite_and_works_again(live) -> None:
    backend = ContinuousBatches(live, batch_size=4)
    texts = backend.generate(PROMPTS)
    weight = live.model.model.norm.weight[0].item()
    with torch.no_grad():
        live.model.model.norm.weight[0] = float("nan")
    with pytest.raises(EvaluationError, match="logits are not finite in a batch: the weights"):
        backend.generate(PROMPTS)
    with torch.no_grad():
        live.model.model.norm.weight[0] = weight
    assert backend.generate(PROMPTS) == texts


def test_texts_are_the_same_when_memory_runs_out(live) -> None:
    expected = StaticBatches(live, batch_size=4).generate(PROMPTS)
    passes: list[int] = []

    def fail(*_: object) -> None:
        passes.append(1)
        if len(passes) in (1, 9):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    live.model.model.register_forward_pre_hook(fail)
    told: list[int] = []
    backend = ContinuousBatches(live, batch_size=8)
    assert backend.generate(PROMPTS, lambda index, _text: told.append(index)) == expected
    assert sorted(told) == list(range(len(PROMPTS)))
    assert len(passes) > 9


def test_lack_of_memory_of_a_few_wide_rows_does_not_cut_later_batches(live, monkeypatch) -> None:
    rows: list[int] = []
    start = live.model.init_continuous_batching

    def watching(**settings):
        rows.append(settings["continuous_batching_config"].max_requests_per_batch)
        return start(**settings)

    monkeypatch.setattr(live.model, "init_continuous_batching", watching)

    def fail(*_: object) -> None:
        if len(rows) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    live.model.model.register_forward_pre_hook(fail)
    backend = ContinuousBatches(live, batch_size=8)
    backend.generate(PROMPTS[-3:])
    assert rows == [3, 1]
    narrow = [Prompt((5 + n, 9), 4) for n in range(8)]
    backend.generate(narrow)
    assert rows[2] > 1
    backend.generate(PROMPTS[-3:])
    assert rows[3:] == [1]


def test_single_row_that_does_not_fit_fails(live) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    live.model.model.register_forward_pre_hook(fail)
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        ContinuousBatches(live, batch_size=8).generate(PROMPTS)


def test_repetition_penalty_is_refused(live) -> None:
    prompt = Prompt((5, 6), 4, (), repetition_penalty=1.5)
    with pytest.raises(EvaluationError, match=r"set `evaluation.backend: static`"):
        ContinuousBatches(live, batch_size=4).generate([prompt])


def test_evaluation_has_the_same_scores_and_texts_by_either_backend(
    objectives, settings, live, model_directories
) -> None:
    chosen = {name: objectives[name] for name in ("text", "match", "choice")}
    continuous = settings.model_copy(update={"backend": "continuous"})
    ours = HarnessEvaluator(chosen, settings)
    theirs = HarnessEvaluator(chosen, continuous)
    for directory in model_directories[:2]:
        live.swap(directory)
        items = ours.manifest.items("search")
        expected, found = ours.evaluate(live, items), theirs.evaluate(live, items)
        assert found.texts == expected.texts
        for task, scores in expected.task_scores.items():
            assert found.task_scores[task].values.tolist() == scores.values.tolist()
    theirs.close()
