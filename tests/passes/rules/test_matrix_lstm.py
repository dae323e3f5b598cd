"""The matrix memory of transformers' xLSTM is one node, in whatever form it runs."""

import copy

import pytest
import torch
from torch import nn

import itnet
from tests import foreign

SETTINGS = dict(
    hidden_size=16,
    embedding_dim=16,
    num_heads=2,
    num_blocks=1,
    vocab_size=32,
    chunk_size=8,
    ffn_round_up_to_multiple_of=8,
)


@pytest.fixture(scope="module", autouse=True)
def library():
    if not foreign.available("transformers"):
        pytest.skip("transformers is not installed")
    foreign.prepare("transformers")


def _backend(mode="inference", returns=True, **settings):
    from transformers.models.xlstm.configuration_xlstm import xLSTMConfig
    from transformers.models.xlstm.modeling_xlstm import xLSTMBackend

    return xLSTMBackend(xLSTMConfig(**SETTINGS | settings, mode=mode, return_last_states=returns))


class Mixes(nn.Module):
    def __init__(self, backend):
        super().__init__()
        torch.manual_seed(0)
        self.project, self.backend = nn.Linear(16, 2 * 8 * 3 + 4), backend

    def forward(self, x, *state):
        made = self.project(x).unflatten(-1, (2, 26)).transpose(1, 2)
        q, k, v, i, f = made.split([8, 8, 8, 1, 1], -1)
        result = self.backend(q, k, v, i.squeeze(-1), f.squeeze(-1) + 3, *state)
        return (result[0], *result[1]) if isinstance(result, tuple) else result


def _results(net, *inputs):
    net.zero_grad()
    out = net(*inputs)
    leaves = out if isinstance(out, tuple) else (out,)
    sum(
        (leaf * torch.linspace(-1, 1, leaf.numel(), dtype=leaf.dtype).view(leaf.shape)).sum() for leaf in leaves
    ).backward()
    return [*leaves, *(p.grad for p in net.parameters())]


def _same(unified, model, *inputs, **tolerance):
    tolerance = tolerance or dict(rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(_results(unified, *inputs), _results(model, *inputs), **tolerance)


@pytest.mark.parametrize("given", [False, True], ids=["fresh", "continued"])
def test_chunks_and_steps_are_one_node_of_any_length(given):
    model = Mixes(_backend())
    state = [torch.randn(2, 2, 8, 8), torch.randn(2, 2, 8), torch.randn(2, 2, 1)] if given else []
    unified = itnet.unify(model, (torch.randn(2, 11, 16), *state), copy=True)
    (node,) = unified.integrals.values()
    assert (node.origin, node.family, node.verification.status) == ("mlstm", "semiseparable", "verified")
    for steps in (11, 24, 1):
        _same(unified, model, torch.randn(2, steps, 16), *state)
    assert len(unified.integrals) == 1


@pytest.mark.parametrize("returns", [False, True])
def test_the_mode_for_training_takes_whole_chunks(returns):
    model = Mixes(_backend("train", returns))
    unified = itnet.unify(model, torch.randn(2, 16, 16), copy=True)
    (node,) = unified.integrals.values()
    assert node.origin == "mlstm"
    for steps in (16, 8):
        _same(unified, model, torch.randn(2, steps, 16))
    with pytest.raises(ValueError, match="divisible"):
        unified(torch.randn(2, 5, 16))


def test_states_have_the_type_that_the_source_gives_them():
    model = Mixes(_backend()).double()
    for steps, dtype in ((16, torch.float64), (11, torch.float32)):
        x = torch.randn(2, steps, 16, dtype=torch.float64)
        unified = itnet.unify(model, x, copy=True)
        assert len(unified.integrals) == 1
        assert [one.dtype for one in unified(x)] == [one.dtype for one in model(x)] == [torch.float64, *[dtype] * 3]
        _same(unified, model, x, rtol=1e-4, atol=1e-5)


def test_half_precision():
    model = Mixes(_backend()).bfloat16()
    x = torch.randn(2, 7, 16, dtype=torch.bfloat16)
    unified = itnet.unify(model, x, copy=True)
    assert len(unified.integrals) == 1
    torch.testing.assert_close(unified(x), model(x), rtol=3e-2, atol=3e-2)


def test_other_functions_put_into_the_module_are_left_alone():
    model = Mixes(_backend())
    inner = model.backend._inference_fn
    model.backend._inference_fn = lambda **given: (inner(**given)[0] * 2, inner(**given)[1])
    x = torch.randn(2, 2, 16)
    unified = itnet.unify(model, x, copy=True)
    assert "mlstm" not in [node.origin for node in unified.integrals.values()]
    _same(unified, model, x)


def test_the_whole_network():
    from transformers.models.xlstm.configuration_xlstm import xLSTMConfig
    from transformers.models.xlstm.modeling_xlstm import xLSTMForCausalLM

    torch.manual_seed(0)
    model = xLSTMForCausalLM(xLSTMConfig(**SETTINGS)).eval()
    ids = torch.randint(32, (2, 13))
    unified = itnet.unify(model, example_kwargs={"input_ids": ids, "use_cache": False}, copy=True)
    assert [node.origin for node in unified.integrals.values()] == ["mlstm"]
    for net in (unified, copy.deepcopy(unified), unified.train()):
        torch.testing.assert_close(
            net(input_ids=ids, use_cache=False).logits, model(input_ids=ids, use_cache=False).logits
        )
