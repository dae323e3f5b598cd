"""Where a node comes from."""

import torch
from torch import Tensor, nn

import itnet
from itnet_compiler.capture.source_frames import user_frames


def test_frames_of_torch_are_left_out_and_those_before_forward() -> None:
    class Model(nn.Module):
        def forward(self) -> str | None:
            return self.inner()

        def inner(self) -> str | None:
            return user_frames()

    text = Model()()
    lines = text.splitlines()
    assert [line.split(" in ")[1] for line in lines[::2]] == ["forward", "inner"]
    assert all(__file__ in line for line in lines[::2])
    assert lines[1::2] == ["    return self.inner()", "    return user_frames()"]


def test_outside_of_a_forward_there_is_none() -> None:
    assert user_frames() is None


def test_nodes_of_a_unified_model_know_their_line() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return helper(x)

    unified = itnet.unify(Model(), torch.randn(2, 3))
    (node,) = [node for node in unified.graph.nodes if node.op == "call_function"]
    assert node.stack_trace.endswith("in helper\n    return x * 2")


def helper(x: Tensor) -> Tensor:
    return x * 2
