"""The networks that tests and benchmarks build."""

from __future__ import annotations

import pytest
import torch
from torch.utils._pytree import tree_leaves

from tests import foreign
from tests.foreign import hard


def test_groups():
    assert len(foreign.names()) >= 60
    assert set(foreign.names()) > foreign.THOROUGH
    assert {foreign.group_of(name) for name in foreign.names()} == set(foreign.GROUPS)
    assert "resnet50" in foreign.names("torchvision")
    with pytest.raises(ValueError, match="no group"):
        foreign.names("keras")
    assert not set(hard.names()) & set(foreign.names())


@pytest.mark.foreign
@pytest.mark.parametrize("name", ["bilstm_tagger", "vit_b_16", "vit_tiny_patch16_224", "bert"])
def test_networks_are_the_same_every_time(name):
    if not foreign.available(foreign.group_of(name)):
        pytest.skip(f"{foreign.group_of(name)} is not installed")
    (first, args, kwargs), (second, _, _) = foreign.build(name), foreign.build(name)
    assert not first.training
    with torch.no_grad():
        ours, theirs = (tree_leaves(model(*args, **kwargs)) for model in (first, second))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True) if isinstance(a, torch.Tensor))
