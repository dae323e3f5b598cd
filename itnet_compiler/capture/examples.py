"""Example inputs, given in normal form or inferred where the model says what it takes; models that cannot be taken."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy as is_uninitialised

from ..errors import InputError, ModelError

__all__ = ["Example", "infer_example", "is_lazy", "normalise_example", "refuse_unsuitable"]


@dataclass(frozen=True)
class Example:
    """Arguments of one call."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


def refuse_unsuitable(model: Any) -> None:
    """Raise ``ModelError``, with what to do instead, for objects that cannot be unified as they are."""
    if not isinstance(model, nn.Module):
        kind = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
        remedy = "pass an instance" if isinstance(model, type) else "pass a torch.nn.Module"
        raise ModelError(f"unify takes a torch.nn.Module, not {kind}", remedy=remedy)
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(
            "a TorchScript module has no Python forward to capture", remedy="unify the module it was made of"
        )
    if isinstance(model, torch._dynamo.OptimizedModule):
        raise ModelError(
            "this model is already under torch.compile",
            remedy="unify first and compile the result: torch.compile(itnet.unify(model._orig_mod, inputs))",
        )
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise ModelError(
            f"this model is wrapped in {type(model).__name__}",
            remedy=f"unify the model inside, then wrap: {type(model).__name__}(itnet.unify(model.module, inputs))",
        )
    for path, module in model.named_modules():
        if "quantized" in type(module).__module__ and type(module).__module__.startswith("torch."):
            raise ModelError(
                f"module {path or 'model'!r} ({type(module).__name__}) is quantised: its weights are packed",
                remedy="unify the floating-point model",
                node=path,
            )


def is_lazy(model: nn.Module) -> bool:
    """Whether the model has parameters or buffers that take their shape from the first call."""
    return any(is_uninitialised(tensor) for tensor in (*model.parameters(), *model.buffers()))


def normalise_example(inputs: Any, kwargs: Mapping[str, Any] | None) -> Example | None:
    """Example inputs as users give them; None where there are none."""
    named = dict(kwargs or {})
    if inputs is None:
        return Example((), named) if named else None
    if isinstance(inputs, Tensor):
        return Example((inputs,), named)
    if isinstance(inputs, Mapping):
        return Example((), dict(inputs) | named)
    if isinstance(inputs, (tuple, list)):
        return Example(tuple(inputs), named)
    raise InputError(
        f"example_inputs is a {type(inputs).__name__}",
        remedy="pass a tensor, a tuple of positional arguments, or a dict of keyword arguments",
    )


def infer_example(model: nn.Module) -> Example:
    """Inputs of the kind that the model itself declares: Lightning, timm and transformers models do.

    Raises:
        InputError: where it declares nothing; the text shows what to pass.
    """
    for infer in (_from_lightning, _from_timm, _from_transformers):
        example = infer(model)
        if example is not None:
            return _moved(example, model)
    required = [
        name
        for name, parameter in inspect.signature(model.forward).parameters.items()
        if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    shown = ", ".join(required) or "…"
    raise InputError(
        f"{type(model).__name__} does not say what it takes, so example inputs are needed",
        remedy=f"itnet.unify(model, ({shown}{',' if len(required) == 1 else ''})) with tensors as in model({shown}); "
        "a batch of 2 is enough, sizes stay dynamic",
    )


def _from_lightning(model: Any) -> Example | None:
    array = getattr(model, "example_input_array", None)
    return None if array is None else normalise_example(array, None)


def _from_timm(model: Any) -> Example | None:
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    size = config.get("input_size") if isinstance(config, Mapping) else None
    if size is None:
        return None
    # A model built for another image size than its pretrained weights says so in its patch embedding.
    actual = getattr(getattr(model, "patch_embed", None), "img_size", None)
    if isinstance(actual, (tuple, list)) and len(actual) == 2:
        size = (size[0], *actual)
    return Example((torch.zeros(2, *size),))


def _from_transformers(model: Any) -> Example | None:
    config, main = getattr(model, "config", None), getattr(model, "main_input_name", None)
    if config is None or main is None:
        return None
    if main == "pixel_values":
        size = getattr(config, "image_size", None)
        size = (size, size) if isinstance(size, int) else size
        if not isinstance(size, (tuple, list)):
            return None
        return Example((), {main: torch.zeros(2, getattr(config, "num_channels", 3), *size)})
    if main == "input_ids":
        length = min(16, getattr(config, "max_position_embeddings", 16) or 16)
        ids = torch.ones(2, length, dtype=torch.long)
        inputs = {"input_ids": ids}
        accepted = inspect.signature(model.forward).parameters
        if "attention_mask" in accepted:
            inputs["attention_mask"] = torch.ones_like(ids)
        if getattr(config, "is_encoder_decoder", False):
            inputs["decoder_input_ids"] = ids.clone()
        return Example((), inputs)
    return None


def _moved(example: Example, model: nn.Module) -> Example:
    """The example on the device of the model's parameters, floating tensors in their dtype."""
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    if parameter is None:
        return example

    def move(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(parameter.device, parameter.dtype if value.is_floating_point() else value.dtype)

    return Example(tuple(move(v) for v in example.args), {k: move(v) for k, v in example.kwargs.items()})
