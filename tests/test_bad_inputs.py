"""Bad inputs: each has a clear error that says what to do."""

import pytest
import torch
from torch import nn

import itnet


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv1d(3, 4, 3)

    def forward(self, signal, gain=None):
        return self.layer(signal)


X = torch.randn(2, 3, 9)


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (3, "not a int"),
        (Net, "the class Net"),
        (lambda x: x, "takes a torch.nn.Module"),
        (None, "takes a torch.nn.Module"),
    ],
)
def test_not_a_module(model, text):
    with pytest.raises(itnet.ModelError, match=text) as caught:
        itnet.unify(model, X)
    assert caught.value.remedy


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_says_to_take_the_module_it_was_made_of():
    with pytest.raises(itnet.ModelError, match="TorchScript"):
        itnet.unify(torch.jit.script(nn.Linear(2, 2)), torch.zeros(1, 2))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_compiled_and_parallel_models_say_how_to_unwrap():
    with pytest.raises(itnet.ModelError, match="_orig_mod"):
        itnet.unify(torch.compile(Net()), X)
    with pytest.raises(itnet.ModelError, match=r"model\.module"):
        itnet.unify(nn.DataParallel(Net()), X)


def test_quantised_modules_are_named():
    class QuantizedLinear(nn.Module):
        def forward(self, x):
            return x

    QuantizedLinear.__module__ = "torch.ao.nn.quantized.modules.linear"
    with pytest.raises(itnet.ModelError, match=r"'1'.*quantised"):
        itnet.unify(nn.Sequential(Net(), QuantizedLinear()), X)


def test_lazy_modules_stay_lazy_until_they_are_called():
    model = nn.Sequential(nn.LazyConv1d(3, 1), nn.ReLU())
    unified = itnet.unify(model, X)
    assert isinstance(model[0], nn.LazyConv1d) and isinstance(unified[0], nn.LazyConv1d)
    assert "lazy" in str(unified)
    unified(X), unified(X)
    assert unified.integrals and type(unified[0]) is nn.Conv1d


def test_missing_example_inputs_are_shown():
    with pytest.raises(itnet.InputError, match=r"itnet\.unify\(model, \(signal,\)\)"):
        itnet.unify(Net())


@pytest.mark.parametrize("inputs", [torch.zeros(2, 4, 9), (X, X, X), {"wrong": X}, ()])
def test_example_inputs_that_the_model_refuses(inputs):
    with pytest.raises(itnet.InputError, match="does not run on the example inputs") as caught:
        itnet.unify(Net(), inputs)
    assert "model(" in caught.value.remedy


def test_example_inputs_of_a_wrong_kind():
    with pytest.raises(itnet.InputError, match="a str"):
        itnet.unify(Net(), "x")


def test_a_meta_model_is_inspectable_and_running_it_raises():
    with torch.device("meta"):
        model = Net()
    unified = itnet.unify(model, X.to("meta"))
    assert unified.integrals["layer"].verification.status == "verified" and unified.ir
    with pytest.raises(itnet.ModelError, match="meta device") as caught:
        unified(X)
    assert "load_state_dict" in caught.value.remedy


def test_an_unknown_lowering_lists_those_there_are():
    unified = itnet.unify(Net(), X)
    with pytest.raises(itnet.LoweringError, match="library") as caught:
        itnet.lower(unified, method="magic")
    assert "reference" in caught.value.remedy
    with pytest.raises(itnet.LoweringError, match="no integral"):
        itnet.lower(unified, method="reference", only="nothing*")


def test_functions_of_unified_models_refuse_others():
    with pytest.raises(TypeError, match=r"itnet\.unify"):
        itnet.lower(Net())
