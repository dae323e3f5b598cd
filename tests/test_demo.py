"""The demo: what it does when something is amiss. That its output is right is tested with the README."""

from __future__ import annotations

import builtins
import io

import pytest
import torch

from itnet_compiler import demo
from itnet_compiler.errors import ItnetError


def test_without_scikit_learn_it_says_what_to_install(monkeypatch):
    original = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    with pytest.raises(ItnetError, match=r'pip install "itnet-compiler\[demo\]"'):
        demo.run(io.StringIO())
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.slow
def test_a_difference_is_reported(monkeypatch):
    def wrong(model, example_inputs):
        unified = demo.DigitReader()
        unified.ir = ""
        return unified.eval()

    monkeypatch.setattr(demo, "unify", wrong)
    monkeypatch.setattr(demo, "EPOCHS", 1)
    stream = io.StringIO()
    assert demo.run(stream) == 1
    assert "please report it" in stream.getvalue()
