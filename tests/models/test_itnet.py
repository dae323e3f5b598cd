"""ITNet: every modality, pairs of them, padding, and that it learns."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from itnet.models import ITNet, Patches, Points, Tokens

import itnet


def _network(**options):
    torch.manual_seed(0)
    encoders = {"image": Patches(3, 4, 32), "text": Tokens(50, 32), "cloud": Points(2, 3, 32)}
    return ITNet(encoders, 32, depth=2, hidden=8, fourier=4, **options)


def _inputs(batch=2):
    return {
        "image": torch.randn(batch, 3, 8, 12),
        "text": torch.randint(0, 50, (batch, 9)),
        "cloud": (torch.randn(batch, 7, 2), torch.rand(batch, 7, 3)),
    }


@pytest.mark.parametrize(
    "names", [["image"], ["text"], ["cloud"], ["image", "text"], ["cloud", "image", "text"]], ids=str
)
def test_any_modalities_give_an_output(names):
    network, given = _network(outputs=5), _inputs()
    assert network({name: given[name] for name in names}).shape == (2, 5)
    features = _network()({name: given[name] for name in names})
    assert features.shape == (2, sum({"image": 6, "text": 9, "cloud": 7}[name] for name in names), 32)


def test_one_transform_is_shared_or_not():
    shared, own = (sum(p.numel() for p in _network(shared=flag).parameters()) for flag in (True, False))
    transform = sum(p.numel() for p in _network().blocks[0].transform.parameters())
    assert own - shared == transform


def test_padded_tokens_change_nothing():
    network, tokens = _network(outputs=5).eval(), torch.randint(0, 50, (1, 9))
    expected = network({"text": tokens})
    longer = torch.cat([tokens, torch.full((1, 4), 7)], 1)
    found = network({"text": {"tokens": longer, "mask": torch.arange(13)[None] < 9}})
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_points_may_come_in_any_order():
    network, (values, positions) = _network(outputs=5).eval(), _inputs()["cloud"]
    order = torch.randperm(7)
    found = network({"cloud": (values[:, order], positions[:, order])})
    torch.testing.assert_close(found, network({"cloud": (values, positions)}), rtol=1e-4, atol=1e-5)


def test_every_parameter_in_use_learns():
    network = _network(outputs=5)
    network(_inputs()).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())


def test_what_it_does_not_take_is_said():
    network = _network()
    with pytest.raises(itnet.InputError, match="sound without encoder"):
        network({"sound": torch.zeros(1)})
    with pytest.raises(itnet.InputError, match="do not tile"):
        network({"image": torch.zeros(1, 3, 9, 8)})
    with pytest.raises(itnet.InputError, match="no input"):
        network({})


def test_it_learns_a_task_of_two_positions():
    """Is the last token the same as the first one?"""
    torch.manual_seed(0)
    network = ITNet({"text": Tokens(4, 32)}, 32, depth=1, outputs=2, hidden=16)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(150):
        tokens = torch.randint(0, 4, (64, 8))
        tokens[::2, 7] = tokens[::2, 0]
        label = (tokens[:, 0] == tokens[:, 7]).long()
        loss = F.cross_entropy(network({"text": tokens}), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.3
