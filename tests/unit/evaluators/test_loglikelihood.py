"""Log-likelihoods against a forward pass per request."""

import random

import pytest
import torch

from configs.errors import EvaluationError
from evaluators.loglikelihood import Continuation, loglikelihoods


def make_continuations(count: int, longest: int = 30) -> list[Continuation]:
    rng = random.Random(2)
    return [
        Continuation(
            tuple(rng.randrange(2, 320) for _ in range(rng.randint(1, longest))),
            tuple(rng.randrange(2, 320) for _ in range(rng.randint(1, 4))),
        )
        for _ in range(count)
    ]


def reference(model, item: Continuation, max_length: int = 96) -> tuple[float, bool]:
    ids = (item.context_ids + item.token_ids)[-(max_length + 1) :]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids[:-1]])).logits[0]
    logits = torch.log_softmax(logits, -1)[-len(item.token_ids) :]
    tokens = torch.tensor(item.token_ids)
    total = logits.gather(1, tokens[:, None]).sum().item()
    return total, bool((logits.argmax(-1) == tokens).all())


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_likelihoods_equal_one_pass_per_request_in_any_batch(live, batch_size) -> None:
    items = make_continuations(20)
    found = loglikelihoods(live.model, items, batch_size=batch_size, max_length=96)
    for item, likelihood in zip(items, found, strict=True):
        expected, greedy = reference(live.model, item)
        assert likelihood.log_probability == pytest.approx(expected, abs=1e-3)
        assert likelihood.is_greedy is greedy


def test_greedy_continuation_is_recognized(live) -> None:
    with torch.no_grad():
        best = live.model(input_ids=torch.tensor([[5, 9, 12]])).logits[0, -1].argmax().item()
    yes, no = loglikelihoods(
        live.model,
        [Continuation((5, 9, 12), (best,)), Continuation((5, 9, 12), (best + 1,))],
        batch_size=2,
        max_length=96,
    )
    assert (yes.is_greedy, no.is_greedy) == (True, False)
    assert yes.log_probability > no.log_probability


def test_requests_that_share_all_but_the_last_token_share_a_row(live, monkeypatch) -> None:
    rows: list[int] = []
    forward = live.model.model.forward

    def counting(*args, **kwargs):
        rows.append(kwargs["input_ids"].shape[0])
        return forward(*args, **kwargs)

    monkeypatch.setattr(live.model.model, "forward", counting)
    items = [Continuation((5, 9), (token,)) for token in range(10, 14)]
    # The same tokens, cut into context and continuation elsewhere.
    items.append(Continuation((5,), (9, 12)))
    found = loglikelihoods(live.model, items, batch_size=8, max_length=96)
    assert rows == [1]
    for item, likelihood in zip(items, found, strict=True):
        assert likelihood.log_probability == pytest.approx(reference(live.model, item)[0], abs=1e-4)


def test_long_context_loses_its_start(live) -> None:
    (item,) = make_continuations(1, longest=1)
    long = Continuation(tuple(range(2, 200)) + item.context_ids, item.token_ids)
    (found,) = loglikelihoods(live.model, [long], batch_size=1, max_length=40)
    expected, _ = reference(live.model, long, max_length=40)
    assert found.log_probability == pytest.approx(expected, abs=1e-4)


def test_likelihoods_of_nothing_are_empty(live) -> None:
    assert loglikelihoods(live.model, [], batch_size=4, max_length=96) == []


def test_likelihoods_fail_when_logits_are_not_finite(live) -> None:
    with torch.no_grad():
        live.model.model.norm.weight[0] = float("nan")
    with pytest.raises(EvaluationError, match="logits are not finite for a context of 2 tokens"):
        loglikelihoods(live.model, [Continuation((4, 5), (6,))], batch_size=4, max_length=96)
