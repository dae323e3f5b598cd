"""A unified model under torch.compile: same results, no break, and every change of the model is noticed."""

import copy

import pytest
import torch
from torch import nn

import itnet
from tests import foreign


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv1d(3, 4, 3, padding=1), nn.BatchNorm1d(4), nn.Linear(4, 2)

    def forward(self, x, gain=None):
        y = self.head(torch.relu(self.norm(self.conv(x))).mean(2))
        return y if gain is None else y * gain


@pytest.fixture(params=["default plan", "another plan"])
def pair(request):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = Net().eval()
    with torch.no_grad():
        model.norm.running_mean.uniform_()
    x = torch.randn(2, 3, 8)
    unified = itnet.unify(model, x)
    if request.param == "another plan":  # the graph is traced; its reference kernels do not give the same bits
        itnet.lower(unified, method="reference", only="mean*")
        itnet.lower(unified, method="library", only="*")
    return model, unified, x


def compiled(model):
    return torch.compile(model, backend="eager", fullgraph=True)


def test_a_plan_is_followed_under_compile(pair):
    model, unified, x = pair
    itnet.lower(unified, method="reference", only="conv")
    captured = []

    def backend(graph, inputs):
        captured.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    found = torch.compile(unified, backend=backend, fullgraph=True)(x)
    torch.testing.assert_close(found, model(x))
    assert not any("conv1d" in target for target in captured)  # the dense definition, not the library's kernel


class Attends(nn.Module):
    """Causal attention written out, whose mask is an ``nn.Buffer``."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(8, 24)
        self.hidden = nn.Buffer(torch.ones(5, 5, dtype=torch.bool).triu(1), persistent=False)

    def forward(self, x):
        q, k, v = self.project(x).chunk(3, -1)
        return (q @ k.mT * 8**-0.5).masked_fill(self.hidden, -torch.inf).softmax(-1) @ v


def test_attention_written_out_is_compiled_fused():
    torch._dynamo.reset()
    model, x, captured = Attends(), torch.randn(2, 5, 8), []

    def backend(graph, inputs):
        captured.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    found = torch.compile(itnet.unify(model, x), backend=backend, fullgraph=True)(x)
    torch.testing.assert_close(found, model(x))
    assert any("scaled_dot_product_attention" in target for target in captured)


def test_mode_changes_of_a_part_are_noticed(pair):
    model, unified, x = pair
    unified = copy.deepcopy(unified)
    unified.train()(x)
    run, model = compiled(unified), copy.deepcopy(unified)
    for change in (lambda net: net.norm.eval(), lambda net: net.norm.train(), lambda net: net.eval()):
        change(unified), change(model)
        assert torch.equal(run(x), model(x))


def test_a_replaced_part_is_noticed(pair):
    model, unified, x = pair
    run = compiled(unified)
    assert torch.equal(run(x), model(x))
    unified.head = nn.Linear(4, 5)
    assert run(x).shape == (2, 5)
    unified.head.weight = nn.Parameter(torch.zeros(5, 4))
    assert torch.equal(run(x), unified.head.bias.expand(2, 5))


def test_a_cast_is_noticed(pair):
    model, unified, x = pair
    unified = copy.deepcopy(unified)
    run = compiled(unified)
    run(x)
    unified.to(torch.bfloat16)
    assert torch.equal(run(x.bfloat16()), copy.deepcopy(model).bfloat16()(x.bfloat16()))


def test_other_sizes_and_signatures(pair):
    model, unified, x = pair
    run = compiled(unified)
    for other in (x, x[:1], torch.randn(5, 3, 11)):
        assert torch.equal(run(other), model(other))
    assert torch.equal(run(x, gain=torch.tensor(2.0)), model(x, gain=torch.tensor(2.0)))


class Loop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(3, 3)

    def forward(self, x):
        state, states = x.new_zeros(len(x), 3), []
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
            states.append(state)
        return torch.stack(states, 1)


class WrittenOut(nn.Module):
    def forward(self, x):
        return (x @ x.mT * 0.3).softmax(-1) @ x


@pytest.mark.parametrize(("model", "operator"), [(Loop(), "row_loop"), (WrittenOut(), "scaled_dot_product_attention")])
def test_the_compiler_is_given_the_integrals_not_what_they_were_written_as(model, operator):
    torch._dynamo.reset()
    x, graphs = torch.randn(2, 9, 3), []
    unified = itnet.unify(model, x)

    def backend(graph, inputs):
        graphs.append([str(node.target) for node in graph.graph.nodes if node.op.startswith("call")])
        return graph.forward

    run = torch.compile(unified, backend=backend, fullgraph=True)
    torch.testing.assert_close(run(x), model(x))
    (targets,) = graphs
    assert any(operator in target for target in targets) and len(targets) < 10
    torch.testing.assert_close(run(torch.randn(4, 9, 3)).shape, torch.Size([4, 9, 3]))
    exported = torch.export.export(unified, (x,)).module()
    torch.testing.assert_close(exported(x), model(x))


LONG = pytest.mark.exhaustive


@pytest.mark.foreign
@pytest.mark.parametrize("name", ["bert", "gpt2", "vit_b_16", pytest.param("mobilenet_v3_small", marks=LONG)])
@pytest.mark.parametrize("grad", [True, pytest.param(False, marks=LONG)])
def test_no_graph_break_on_foreign_networks(name, grad):
    torch._dynamo.reset()
    model, args, kwargs = foreign.build(name)
    unified = itnet.unify(model, args, example_kwargs=kwargs)
    with torch.set_grad_enabled(grad):
        assert torch._dynamo.explain(unified)(*args, **kwargs).graph_break_count == 0
        flat = torch.utils._pytree.tree_leaves
        found, expected = flat(compiled(unified)(*args, **kwargs)), flat(compiled(model)(*args, **kwargs))
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
