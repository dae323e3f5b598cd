"""The networks of the zoo by name: ``timm/resnet18``, ``transformers/bert``, ``transformers/bert@eager``.

model, args, kwargs = build("timm/resnet18")
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import nn

from benchmarks.zoo import from_timm, from_torchvision, from_transformers
from tests import foreign
from tests.foreign import hard
from tests.foreign.registry import Built, prepare

__all__ = ["EAGER", "LIBRARIES", "QUICK", "build", "family_of", "library_of", "names", "sample"]

# After a name: with softmax attention written out instead of scaled_dot_product_attention.
EAGER = "@eager"
LIBRARIES = foreign.GROUPS
# Unlike each other, and done in about ten minutes.
QUICK = tuple(
    "torch/lstm_stack torch/transformer torch/transformer_encoder"
    " torchvision/resnet18 torchvision/mobilenet_v3_small torchvision/swin_t torchvision/lraspp_mobilenet_v3_large"
    " torchvision/ssdlite320_mobilenet_v3_large torchvision/r3d_18"
    " timm/convnextv2_atto timm/vit_tiny_patch16_224 timm/gmixer_12_224 timm/poolformerv2_s12 timm/xcit_nano_12_p8_224"
    " transformers/bert transformers/gpt2 transformers/llama transformers/mixtral transformers/t5 transformers/whisper"
    " transformers/clip transformers/wav2vec2 transformers/detr transformers/mamba transformers/deberta-v2".split()
)
# Below this a parameter that is constant at construction hides what flows through it.
_HIDING = 1e-2


def names(library: str | None = None) -> list[str]:
    """Names of all networks, or of one library's."""
    found = {
        "torch": [*foreign.names("torch"), *hard.names("torch")],
        "torchvision": list(from_torchvision.FAMILIES),
        "timm": list(from_timm.FAMILIES),
        "transformers": from_transformers.names() if library in (None, "transformers") else [],
    }
    return [f"{group}/{name}" for group in ([library] if library else found) for name in found[group]]


def library_of(name: str) -> str:
    """``timm`` of ``timm/resnet18``."""
    return name.partition("/")[0]


def family_of(name: str) -> str:
    """The architecture that a network stands for."""
    library, _, rest = name.removesuffix(EAGER).partition("/")
    tables = {"torchvision": from_torchvision.FAMILIES, "timm": from_timm.FAMILIES}
    return tables.get(library, {}).get(rest, rest)


def sample(size: int, everything: Sequence[str]) -> list[str]:
    """About ``size`` of these, the same share of each library, evenly spaced in its list; QUICK is among them."""
    share = min(1.0, size / len(everything))
    chosen = set(QUICK)
    for library in LIBRARIES:
        own = [name for name in everything if library_of(name) == library]
        chosen.update(own[int(index / share)] for index in range(int(len(own) * share)))
    return [name for name in everything if name in chosen]


def build(name: str) -> Built:
    """The network in eval mode with seeded random weights, positional and keyword example inputs."""
    library, _, rest = name.partition("/")
    prepare(library)
    rest, eager, _ = rest.partition(EAGER)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        if library == "torch":
            model, args, kwargs = (foreign if rest in foreign.names() else hard).build(rest)
        elif library == "torchvision":
            model, args, kwargs = from_torchvision.build(rest)
        elif library == "timm":
            model, args, kwargs = from_timm.build(rest)
        else:
            model, args, kwargs = from_transformers.build(rest, "eager" if eager else "sdpa")
        _open(model)
    return model.eval(), args, kwargs


@torch.no_grad()
def _open(model: nn.Module) -> None:
    """Random numbers for gates and heads that start closed: with them a wrong block would not change the output."""
    for parameter in model.parameters():
        if parameter.is_floating_point() and parameter.numel() and parameter.device.type != "meta":
            first = parameter.flatten()[0]
            if first.abs() < _HIDING and bool((parameter == first).all()):
                parameter.normal_(std=0.02)
