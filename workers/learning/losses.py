"""What learned merges minimize: pure functions of logits and coefficients.

Logits are ``(p, v)``: p predictions over v tokens or classes, of a batch in any order.
"""

from itertools import combinations

import torch
from torch import Tensor

# Below this norm, coefficients have no direction; as in torch.nn.functional.cosine_similarity.
_SMALLEST_NORM = 1e-8


def distillation(source: Tensor, merged: Tensor, *, temperature: float) -> Tensor:
    """Return T^2 times the mean over predictions of KL(softmax(source/T) || softmax(merged/T)).

    The factor T^2 keeps gradients of one size whatever T is (Hinton et al., arXiv:1503.02531,
    section 2).

    Args:
        source: ``(p, v)`` logits of the source; no gradient flows into them.
        merged: ``(p, v)`` logits of the merge.
        temperature: T > 0, dimensionless.

    Returns:
        A scalar >= 0 in nats.
    """
    wanted = torch.log_softmax(source.detach().float() / temperature, dim=-1)
    found = torch.log_softmax(merged.float() / temperature, dim=-1)
    divergence = (wanted.exp() * (wanted - found)).sum(dim=-1)
    return divergence.mean() * temperature**2


def entropy(logits: Tensor) -> Tensor:
    """Return the mean Shannon entropy of predictions, a scalar in nats from 0 to log v.

    H = -sum_k q_k log q_k with q = softmax(logits) of one prediction over its v tokens or classes;
    the mean is over the p predictions.

    Args:
        logits: ``(p, v)``.
    """
    log_probabilities = torch.log_softmax(logits.float(), dim=-1)
    return -(log_probabilities.exp() * log_probabilities).sum(dim=-1).mean()


def similarity(coefficients: Tensor) -> Tensor:
    """Return the mean cosine similarity over pairs of checkpoints, of one tensor's coefficients.

    Args:
        coefficients: ``(c, k)``, one row per checkpoint.

    Returns:
        A scalar in [-1, 1]; 0 for a single checkpoint.
    """
    norms = coefficients.norm(dim=1).clamp_min(_SMALLEST_NORM)
    directions = coefficients / norms[:, None]
    pairs = list(combinations(range(len(coefficients)), 2))
    if not pairs:
        return coefficients.new_zeros(())
    return torch.stack([(directions[i] * directions[j]).sum() for i, j in pairs]).mean()
