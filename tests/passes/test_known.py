"""Known functions: kept whole by the capture, believed in nothing."""

from __future__ import annotations

import copy
import sys
import types
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import itnet
from itnet_compiler.capture.leaves import leaves_installed
from itnet_compiler.ir.selective import Selective
from tests import foreign

PLACE = "transformers.models.of_this_test"


def _scan(change: str = ""):
    """A selective scan as somebody may have written it, with one mistake."""

    def mamba_selective_scan(
        hidden_states,
        dt,
        A,
        B,
        C,
        D=None,
        z=None,
        delta_bias=None,
        delta_softplus=False,
        return_last_state=False,
        **kwargs,
    ):
        if delta_bias is not None:
            dt = dt + delta_bias.to(dt.dtype)[..., None]
        dt = F.softplus(dt) if delta_softplus else dt
        wide = torch.promote_types(hidden_states.dtype, torch.float32)
        state = hidden_states.new_zeros(*hidden_states.shape[:2], A.shape[1], dtype=wide)
        outputs = []
        for t in range(hidden_states.shape[-1]):
            step = dt[..., t, None]
            if change == "explicit":
                factor = 1 + step * A
            elif change == "detached":
                factor = torch.exp(step * A).detach()
            else:
                factor = torch.exp(step * A)
            state = factor * state + step * hidden_states[..., t, None] * B[:, None, :, t]
            outputs.append((state * C[:, None, :, t]).sum(-1).to(hidden_states.dtype))
        y = torch.stack(outputs, -1)
        y = y if D is None else y + hidden_states * D[:, None]
        y = y if z is None else y * F.silu(z)
        return (y, state) if return_last_state else y

    return mamba_selective_scan


class Mixer(nn.Module):
    """A selective state space with everything that the function takes."""

    def __init__(self, **options: object) -> None:
        super().__init__()
        self.options = options
        self.project = nn.Linear(6, 6 + 6 + 3 + 3 + 6)
        self.log_A, self.D, self.bias = (
            nn.Parameter(torch.randn(6, 3)),
            nn.Parameter(torch.randn(6)),
            nn.Parameter(torch.randn(6)),
        )

    def forward(self, x: Tensor) -> Tensor:
        u, dt, B, C, z = self.project(x).transpose(1, 2).split([6, 6, 3, 3, 6], 1)
        scan = sys.modules[PLACE].mamba_selective_scan
        return scan(
            u, dt, -self.log_A.exp(), B, C, D=self.D, z=z, delta_bias=self.bias, delta_softplus=True, **self.options
        )


@pytest.fixture
def place(request: pytest.FixtureRequest) -> Iterator[types.ModuleType]:
    module = types.ModuleType(PLACE)
    module.mamba_selective_scan = _scan(getattr(request, "param", ""))
    sys.modules[PLACE] = module
    yield module
    del sys.modules[PLACE]


def _gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    model.zero_grad()
    model(x).square().sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def test_it_becomes_one_integral_of_any_length(place):
    model, x = Mixer(), torch.randn(2, 9, 6)
    original = place.mamba_selective_scan
    unified = itnet.unify(model, (x,))
    assert place.mamba_selective_scan is original
    (node,) = unified.integrals.values()
    assert (node.origin, node.family, node.plan.lowering) == ("selective scan", "semiseparable", "scan")
    assert node.verification.status == "verified"
    for other in (x, torch.randn(3, 1, 6), torch.randn(1, 40, 6)):
        torch.testing.assert_close(unified(other), model(other))
        for mine, theirs in zip(_gradients(unified, other), _gradients(model, other), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_the_result_is_as_good_as_the_model(place):
    x = torch.randn(2, 9, 6)
    model = Mixer()
    unified = itnet.unify(model, (x,))
    expected = model(x)
    for other in (copy.deepcopy(unified), itnet.unify(unified, (x,))):
        torch.testing.assert_close(other(x), expected)
    for dtype in (torch.float64, torch.bfloat16):
        model.to(dtype)
        twin = itnet.unify(model, (x.to(dtype),))
        assert len(twin.integrals) == 1
        bound = {"rtol": 3e-2, "atol": 3e-2} if dtype == torch.bfloat16 else {}
        torch.testing.assert_close(twin(x.to(dtype)), model(x.to(dtype)), **bound)


@pytest.mark.parametrize("place", ["explicit", "detached"], indirect=True)
def test_another_function_of_that_name_stays_what_it_is(place):
    """``explicit`` computes something else, ``detached`` has other gradients."""
    model, x = Mixer(), torch.randn(2, 9, 6)
    unified = itnet.unify(model, (x,))
    assert not unified.integrals
    assert "selective_scan" in str(unified.report())
    torch.testing.assert_close(unified(x), model(x), rtol=0, atol=0)
    assert all(map(torch.equal, _gradients(unified, x), _gradients(model, x)))


def test_a_call_that_is_something_else_is_traced(place):
    """Packed sequences: the function is told where each begins, and so is no recurrence over one."""
    model, x = Mixer(cu_seqlens=torch.tensor([0, 4, 9])), torch.randn(2, 9, 6)
    unified = itnet.unify(model, (x,))
    # The loop inside may be one, proven step by step; the known function is not.
    assert not any(isinstance(node.kernel, Selective) for node in unified.integrals.values())
    torch.testing.assert_close(unified(x), model(x))


def test_compile_sees_the_node_and_not_the_loop(place):
    model, x = Mixer(), torch.randn(2, 9, 6)
    unified, seen = itnet.unify(model, (x,)), []

    def backend(module, inputs):
        seen.extend(str(node.target) for node in module.graph.nodes)
        return module

    compiled = torch.compile(unified, fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(x), model(x))
    assert sum("selective_scan" in target for target in seen) == 1
    for mine, theirs in zip(_gradients(compiled, x), _gradients(model, x), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    program = torch.export.export(unified, (x,), strict=False)
    torch.testing.assert_close(program.module()(x), model(x))


def test_outside_a_capture_and_on_real_tensors_the_function_is_itself(place):
    model, x = Mixer(), torch.randn(2, 9, 6)
    expected = model(x)
    with leaves_installed():
        torch.testing.assert_close(model(x), expected, rtol=0, atol=0)


CLASSES = {
    "Mamba": dict(state_size=4, intermediate_size=32),
    "Mamba2": dict(state_size=4, num_heads=8, head_dim=4, n_groups=2, chunk_size=8),
    "Qwen3Next": dict(
        linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=4, linear_value_head_dim=4,
        num_experts=2, num_experts_per_tok=1, moe_intermediate_size=8, shared_expert_intermediate_size=8,
        intermediate_size=16, num_attention_heads=2, num_key_value_heads=2, head_dim=8,
        layer_types=["linear_attention"],
    ),
}  # fmt: skip


@pytest.mark.foreign
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", CLASSES)
def test_models_of_transformers(name, train):
    from tests.foreign import prepare

    pytest.importorskip("transformers")
    prepare("transformers")
    import transformers

    transformers.logging.set_verbosity_error()
    options = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 1, "use_cache": False} | CLASSES[name]
    config = getattr(transformers, f"{name}Config")(**options)
    model = getattr(transformers, f"{name}Model")(config).train(train)
    tokens = torch.randint(30, (2, 11))
    unified = itnet.unify(model, (tokens,))
    scans = [node for node in unified.integrals.values() if node.family == "semiseparable"]
    assert [node.plan.lowering for node in scans] == ["scan"]
    assert scans[0].verification.error <= 1e-12
    for given in (tokens, torch.randint(30, (3, 23))):
        torch.testing.assert_close(
            unified(given).last_hidden_state, model(given).last_hidden_state, rtol=1e-4, atol=1e-5
        )


@pytest.mark.foreign
@pytest.mark.exhaustive
def test_gradients_of_a_long_mamba() -> None:
    """At 1,024 steps the backward pass of the fallback takes longer than the comparison at capture waits for."""
    foreign.prepare("transformers")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.MambaConfig(
        vocab_size=100, hidden_size=64, num_hidden_layers=2, state_size=16, use_cache=False
    )
    model, tokens = transformers.MambaModel(config).train(), torch.randint(100, (1, 1024))
    unified = itnet.unify(model, (tokens,))
    assert [node.origin for node in unified.integrals.values()].count("selective scan") == 2

    def slopes(run: nn.Module) -> tuple[Tensor, ...]:
        out = run(tokens).last_hidden_state
        weights = torch.linspace(-1, 1, out.numel()).view(out.shape)
        return torch.autograd.grad((out * weights).sum(), list(model.parameters()))

    found, wanted = slopes(unified), slopes(model)
    scale = sum(float(one.square().sum()) for one in wanted) ** 0.5
    error = sum(float((one - other).square().sum()) for one, other in zip(found, wanted, strict=True)) ** 0.5
    assert error <= 1e-5 * scale
