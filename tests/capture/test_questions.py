"""Questions that a forward asks of its surroundings are part of what a graph is for."""

import pytest
import torch
from torch import nn

import itnet
from itnet_compiler.capture.questions import answers, questions_noted
from itnet_compiler.unified import program_of


class Asks(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.fc, self.kind = nn.Linear(3, 3), kind

    def forward(self, x):
        asked = {
            "grad": torch.is_grad_enabled,
            "requires_grad": lambda: x.requires_grad,
            "layout": x.is_contiguous,
        }[self.kind]()
        return self.fc(x) * (2 if asked else 3)


@pytest.mark.parametrize("kind", ["grad", "requires_grad", "layout"])
def test_another_answer_is_another_graph(kind):
    model = Asks(kind).eval()
    x = torch.randn(3, 3)
    unified = itnet.unify(model, x, copy=True)
    assert program_of(unified).whole
    for given in (x, x.t(), x.clone().requires_grad_()):
        for mode in (torch.enable_grad, torch.no_grad):
            with mode():
                assert torch.equal(unified(given), model(given))


def test_only_this_thread_and_only_foreign_code_counts():
    names = {name: vars(torch.Tensor).get(name) for name in ("is_contiguous", "stride", "requires_grad")}
    with questions_noted() as asked:
        nn.functional.layer_norm(torch.randn(2, 3), (3,))  # torch asks itself a lot
        assert asked == set()
        torch.zeros(2).stride()
        assert asked == {"layout"}
    assert {name: vars(torch.Tensor).get(name) for name in names} == names


def test_layout_is_contiguity_and_the_order_of_axes():
    one, two = torch.randn(2, 3), torch.randn(4, 5)
    root = nn.Identity()
    assert answers({"layout"}, root, [one]) == answers({"layout"}, root, [two])
    assert answers({"layout"}, root, [one]) != answers({"layout"}, root, [two.t()])
    assert answers({"layout"}, root, [one]) != answers({"layout"}, root, [torch.randn(3).expand(2, 3)])
