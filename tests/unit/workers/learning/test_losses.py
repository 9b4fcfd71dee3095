"""Losses against numbers worked out by hand."""

import math

import pytest
import torch

from workers.learning.losses import distillation, entropy, similarity

LN2 = math.log(2.0)


def logits_of(*probabilities: float, temperature: float = 1.0) -> torch.Tensor:
    """Logits whose softmax at a temperature is given."""
    return temperature * torch.tensor(probabilities, dtype=torch.float64).log()


def test_distillation_at_temperature_2_of_three_classes() -> None:
    # KL((1/2, 1/4, 1/4) || (1/4, 1/4, 1/2)) = ln 2 / 2 - ln 2 / 4, times 2^2.
    source = logits_of(0.5, 0.25, 0.25, temperature=2.0)[None]
    merged = logits_of(0.25, 0.25, 0.5, temperature=2.0)[None]
    found = distillation(source, merged, temperature=2.0)
    assert found.item() == pytest.approx(LN2, rel=1e-6)
    # The mean over predictions; equal distributions differ by nothing, whatever is added to logits.
    both = distillation(
        torch.cat([source, source]), torch.cat([merged, source + 3.0]), temperature=2.0
    )
    assert both.item() == pytest.approx(LN2 / 2, rel=1e-6)


def test_distillation_teaches_the_merge_only() -> None:
    source, merged = (torch.randn(4, 5, requires_grad=True) for _ in range(2))
    distillation(source, merged, temperature=2.0).backward()
    assert source.grad is None
    assert merged.grad is not None
    # d/dz of T^2 KL is T (q - p), divided by the number of predictions.
    wanted = 2.0 * (torch.softmax(merged / 2, -1) - torch.softmax(source / 2, -1)) / 4
    assert torch.allclose(merged.grad, wanted, atol=1e-6)


def test_entropy_of_known_distributions() -> None:
    assert entropy(logits_of(0.5, 0.25, 0.25)[None]).item() == pytest.approx(1.5 * LN2, rel=1e-6)
    mixed = torch.stack([logits_of(0.5, 0.25, 0.25), torch.zeros(3, dtype=torch.float64)])
    assert entropy(mixed).item() == pytest.approx((1.5 * LN2 + math.log(3)) / 2, rel=1e-6)
    sure = torch.tensor([[0.0, -1e4, -1e4]])
    assert entropy(sure).item() == 0.0


def test_similarity_is_the_mean_cosine_of_pairs() -> None:
    coefficients = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
    # 1/sqrt 2, 0 and 1/sqrt 2.
    assert similarity(coefficients).item() == pytest.approx(math.sqrt(2) / 3)
    assert similarity(coefficients[:1]).item() == 0.0
    assert similarity(torch.zeros(2, 3)).item() == 0.0
    assert similarity(torch.tensor([[1.0], [-3.0]])).item() == pytest.approx(-1.0)
