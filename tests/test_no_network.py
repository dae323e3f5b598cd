"""Nothing opens a connection: ``unify`` and everything one does with its result work with sockets blocked."""

from __future__ import annotations

import socket

import pytest
import torch
from torch import nn

import itnet


@pytest.fixture
def no_sockets(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(3, 8, 3, padding=1)
        self.lstm = nn.LSTM(8, 8, batch_first=True)

    def forward(self, x):
        return self.lstm(self.conv(x).transpose(1, 2))[0]


def test_unify_without_sockets(no_sockets):
    x = torch.randn(2, 3, 9)
    model = Small()
    unified = itnet.unify(model, x)
    assert torch.equal(unified(x), model(x))
    assert unified.ir
    assert str(unified)
    assert str(unified.report())
    assert unified.explain("conv")
    assert unified.to_networkx().number_of_nodes()
    unified.eval()(x)


def test_the_block_is_real(no_sockets):
    with pytest.raises(AssertionError, match="socket"):
        socket.socket()
