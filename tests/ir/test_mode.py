"""Modes of nodes, in words and in code."""

import pytest
import torch
from torch.fx import Graph

from itnet_compiler.ir.mode import Autocast, Grad, Inference, describe_mode, mode_of

LOW, HALF_OFF = Autocast("cpu", torch.bfloat16, True), Autocast("cuda", torch.float16, False)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ((Grad(False), LOW), "no_grad, autocast(cpu, bf16)"),
        ((Grad(True), HALF_OFF), "enable_grad, autocast(cuda, off)"),
        ((Inference(True), Inference(False)), "inference_mode, inference_mode(off)"),
        ((), "the mode of the caller"),
    ],
)
def test_in_words(mode, expected):
    assert describe_mode(mode) == expected


def test_source_makes_the_block():
    for block in (Grad(False), Grad(True), Inference(True), Inference(False), LOW):
        with torch.enable_grad(), eval(block.source(), {"torch": torch}):
            grad = not isinstance(block, (Grad, Inference)) or block.enabled is isinstance(block, Grad)
            assert torch.is_grad_enabled() is grad
            assert torch.is_inference_mode_enabled() is (block == Inference(True))
            assert torch.is_autocast_enabled("cpu") is (block is LOW)


def test_nodes_without_a_mark_run_in_the_mode_of_the_caller():
    node = Graph().placeholder("x")
    assert mode_of(node) == ()
    node.meta["mode"] = (LOW,)
    assert mode_of(node) == (LOW,)
    assert len({(LOW,), (Autocast("cpu", torch.bfloat16, True, None, 2),)}) == 2
