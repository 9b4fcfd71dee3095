"""A live model as the merge that it holds: its weights, and the gradient of coefficients."""

import pytest
import torch
from torch import Tensor, nn

from configs.errors import CheckpointError
from tests.conftest import TinyPool
from tests.small_models import EMBEDDINGS, TinyVariants, live_model, pool_of, recipe_of
from workers.checkpoint import CheckpointReader
from workers.learning.dam import DamSettings, dam_coefficients
from workers.learning.merged_model import LearnableMerge, leaf
from workers.learning.predictions import predict
from workers.learning.texts import pad
from workers.materialize import Materializer
from workers.sources import Sources

BATCH = pad([(5, 9, 40, 41), (7, 30), (11, 12, 13)], 0)


def random_coefficients(sources: Sources) -> dict[str, Tensor]:
    """Coefficients per column that all differ."""
    draw = torch.Generator().manual_seed(1)
    with CheckpointReader(sources.reference.directory) as reader:
        found = dam_coefficients(reader.entries.values(), len(sources.checkpoints), DamSettings())
    for one in found.values():
        one.data += 0.1 * torch.randn(one.shape, generator=draw)
    return found


def loss_of(model: nn.Module) -> Tensor:
    # Something that every weight has a part in.
    return predict(model, BATCH).log_softmax(-1)[:, 3:40].square().mean()


def gradients_at(sources: Sources, coefficients: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a live model in float64 finds, weights of which never keep a gradient."""
    model = live_model(sources).double()
    with LearnableMerge(model, sources, coefficients, adds_to_base=False) as merge:
        merge.write()
        merge.clear_gradients()
        loss_of(model).backward()
        assert all(parameter.grad is None for parameter in model.parameters())
        return {name: one.grad for name, one in coefficients.items() if one.grad is not None}


def explicit_weights(sources: Sources, coefficients: dict[str, Tensor]) -> dict[str, Tensor]:
    """The merge as part of autograd's graph, in float64."""
    readers = [CheckpointReader(source.directory) for source in sources.checkpoints]
    weights = {}
    for name, factors in coefficients.items():
        tensors = [reader.tensor(name).double() for reader in readers]
        weights[name] = sum(t * f for t, f in zip(tensors, factors.double(), strict=True))
    return weights


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_are_those_of_a_merge_inside_the_graph(pools: TinyVariants, tied: bool) -> None:
    sources = pools(tied=tied)
    coefficients = random_coefficients(sources)
    found = gradients_at(sources, coefficients)
    again = live_model(sources).double()
    leaves = {name: one.detach().clone().requires_grad_() for name, one in coefficients.items()}
    weights = explicit_weights(sources, leaves)
    if tied:
        weights["lm_head.weight"] = weights[EMBEDDINGS]

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = again

        def forward(self) -> Tensor:
            return loss_of(self.model)

    named = {f"model.{name}": weight for name, weight in weights.items()}
    torch.func.functional_call(Inner(), named, ()).backward()
    for name, one in leaves.items():
        assert one.grad is not None
        assert torch.allclose(found[name], one.grad, rtol=2e-4, atol=1e-8), name


def test_gradients_are_differences_of_the_loss(pools: TinyVariants) -> None:
    sources = pools()
    coefficients = random_coefficients(sources)
    gradients = gradients_at(sources, coefficients)
    model = live_model(sources).double()
    with LearnableMerge(model, sources, coefficients, adds_to_base=False) as merge:
        for name in (EMBEDDINGS, "model.layers.1.mlp.down_proj.weight", "model.norm.weight"):
            one = coefficients[name]
            index = int(gradients[name].abs().argmax())
            losses = []
            for change in (1e-2, -2e-2):
                one.data.view(-1)[index] += change
                merge.write()
                losses.append(loss_of(model).item())
            one.data.view(-1)[index] += 1e-2
            slope = (losses[0] - losses[1]) / 2e-2
            assert slope == pytest.approx(gradients[name].view(-1)[index].item(), rel=0.01)


def test_shared_leaves_add_the_gradients_of_task_vectors(pools: TinyVariants) -> None:
    sources = pools()
    shared = leaf(3, 1, 0.3)
    with CheckpointReader(sources.reference.directory) as reader:
        names = list(reader.entries)
    model = live_model(sources).double()
    with LearnableMerge(model, sources, dict.fromkeys(names, shared), adds_to_base=True) as merge:
        assert merge.leaves == [shared]
        merge.write()
        merge.clear_gradients()
        loss_of(model).backward()
        assert shared.grad is not None
        gradient = shared.grad.clone()
        losses = []
        for change in (2e-2, -4e-2):
            shared.data[1] += change
            merge.write()
            losses.append(loss_of(model).item())
    slope = (losses[0] - losses[1]) / 4e-2
    assert slope == pytest.approx(gradient[1].item(), rel=0.01)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merge_in_memory_is_that_of_the_recipe(pools: TinyVariants, dtype: str) -> None:
    sources = pools(dtype)
    shared = leaf(3, 1, 0.0)
    shared.data[:, 0] = torch.tensor([0.7, -0.2, 0.4])
    model, scored = live_model(sources), live_model(sources)
    with CheckpointReader(sources.reference.directory) as reader:
        leaves = dict.fromkeys(reader.entries, shared)
    for adds_to_base, method in ((True, "task_arithmetic"), (False, "linear")):
        with LearnableMerge(model, sources, leaves, adds_to_base=adds_to_base) as merge:
            merge.write()
        weights = [float(value) for value in shared.detach()[:, 0]]
        Materializer(sources).into(scored, recipe_of(sources, weights, method=method))
        for name, tensor in scored.state_dict().items():
            assert torch.equal(tensor, model.state_dict()[name]), name


def test_a_source_is_written_as_it_is(pools: TinyVariants) -> None:
    sources = pools("bfloat16")
    coefficients = random_coefficients(sources)
    model = live_model(sources)
    with LearnableMerge(model, sources, coefficients, adds_to_base=False) as merge:
        merge.write()
        merged = model.model.norm.weight.detach().clone()
        merge.write_source(2)
        with CheckpointReader(sources.checkpoints[2].directory) as reader:
            for name in reader.entries:
                assert torch.equal(model.state_dict()[name], reader.tensor(name).float()), name
        merge.write()
        assert torch.equal(model.model.norm.weight, merged)


def test_a_closed_merge_leaves_a_model_without_gradients(pools: TinyVariants) -> None:
    sources = pools()
    model = live_model(sources)
    LearnableMerge(model, sources, random_coefficients(sources), adds_to_base=False).close()
    assert not any(parameter.requires_grad for parameter in model.parameters())
    model.requires_grad_()
    loss_of(model).backward()
    assert model.model.norm.weight.grad is not None


def test_task_vectors_need_a_base(tiny_pool: TinyPool) -> None:
    sources = pool_of(None, **tiny_pool.checkpoints)
    model = live_model(sources)
    with pytest.raises(CheckpointError, match=r"need `models\.base`"):
        LearnableMerge(model, sources, {}, adds_to_base=True)
