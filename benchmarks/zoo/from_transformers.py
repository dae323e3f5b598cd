"""Networks of transformers: every model type, from its own configuration made small by general rules.

Which class stands for a type: the one that transformers' tables name first in ``_TASKS``, else the first of its module.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import time
from typing import Any

import torch
from torch import nn

from benchmarks.zoo.exceptions import DROPPED, EXCEPTIONS
from benchmarks.zoo.inputs import example
from benchmarks.zoo.shrink import Policy, shrink
from tests.foreign.registry import Built

__all__ = ["build", "names"]

_TASKS = (
    "CAUSAL_LM",
    "",
    "SEQ_TO_SEQ_CAUSAL_LM",
    "MULTIMODAL_LM",
    "CTC",
    "OBJECT_DETECTION",
    "DEPTH_ESTIMATION",
    "BACKBONE",
    "KEYPOINT_DETECTION",
    "IMAGE_CLASSIFICATION",
    "UNIVERSAL_SEGMENTATION",
    "SEMANTIC_SEGMENTATION",
    "IMAGE_TO_IMAGE",
    "TEXT_TO_WAVEFORM",
    "TEXT_TO_SPECTROGRAM",
    "POSE_ESTIMATION",
    "IMAGE_MATTING",
)
_NOT_OPTIONS = frozenset(
    "transformers_version architectures dtype torch_dtype _name_or_path id2label label2id per_layer_config".split()
)
# Their random choices come from Python's and NumPy's generators, which no seed of torch reaches.
_FIXED = {"apply_spec_augment": False, "layerdrop": 0.0, "use_cache": False}
_MOST_PARAMETERS = 200_000_000
# Seconds of processor time after which no smaller or larger version is tried.
_PATIENCE = 40.0


def names() -> list[str]:
    """Every model type that the installed transformers has."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return list(CONFIG_MAPPING_NAMES)


def build(name: str, attention: str) -> Built:
    """The network, positional and keyword example inputs; raises what the first attempt raised.

    Args:
        name: Model type.
        attention: ``eager`` writes softmax attention out; ``sdpa`` leaves the choice to transformers, which takes the
            fused operator wherever the network can.
    """
    import transformers

    transformers.logging.set_verbosity_error()
    failures: list[Exception] = []
    begun = time.process_time()
    for policy in Policy:
        if time.process_time() - begun > _PATIENCE:
            break
        try:
            model = _model(name, policy, attention)
        except Exception as error:  # whatever a type says to sizes that do not belong together
            failures.append(error)
            continue
        for variant in range(4):
            try:
                inputs = example(model, variant)
                with torch.no_grad():
                    model(**inputs)
            except Exception as error:
                failures.append(error)
            else:
                return model, (), inputs
    raise failures[0]


def _model(name: str, policy: Policy, attention: str) -> nn.Module:
    """One network in eval mode."""
    kind, config = _kind(name), _configuration(name, policy)
    torch.manual_seed(0)
    if attention == "eager":
        for part in _parts(config):
            part._attn_implementation = "eager"
    if policy is Policy.DEPTH:
        _refuse_large(kind, config)
    return kind(config).eval()


def _refuse_large(kind: type[nn.Module], config: Any) -> None:
    with torch.device("meta"):
        size = sum(one.numel() for one in kind(copy.deepcopy(config)).parameters())
    if size > _MOST_PARAMETERS:
        raise ValueError(f"{size} parameters at the published width")


def _parts(config: Any) -> list[Any]:
    """A configuration and those inside it."""
    from transformers import PreTrainedConfig

    inner = [part for part in vars(config).values() if isinstance(part, PreTrainedConfig)]
    return [config, *(found for part in inner for found in _parts(part))]


def _configuration(name: str, policy: Policy) -> Any:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = CONFIG_MAPPING[name]
    options = copy.deepcopy(kind().to_dict())
    shrink(options, policy)
    _update(options, EXCEPTIONS.get(name, {}))
    _fix(options)
    for key in ("model_type", *DROPPED.get(name, ())):
        options.pop(key, None)
    return kind(**options)


def _fix(options: dict[str, Any]) -> None:
    """Leave out what is no option, and set what is the same for all, in the configurations of parts too."""
    for key in _NOT_OPTIONS & options.keys():
        del options[key]
    options.update({key: value for key, value in _FIXED.items() if key in options})
    for value in options.values():
        if isinstance(value, dict):
            _fix(value)


def _update(options: dict[str, Any], given: dict[str, Any]) -> None:
    """Set what is ``given``, in the configurations of parts too."""
    for key, value in given.items():
        if isinstance(value, dict) and isinstance(options.get(key), dict):
            _update(options[key], value)
        else:
            options[key] = value


def _kind(name: str) -> type[nn.Module]:
    """The class of network that stands for a model type."""
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = CONFIG_MAPPING[name]
    tasks = list(_TASKS)
    if (
        name in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
        or getattr(config, "is_encoder_decoder", False)
        or _is_two_sided(config)
    ):
        tasks = [*tasks[1:], tasks[0]]
    for task in tasks:
        table = getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING" if task else "MODEL_MAPPING", None)
        if table is not None and name in table._model_mapping:
            found = table[config]
            return found[0] if isinstance(found, (list, tuple)) else found
    return _first_of_module(config)


def _is_two_sided(config: Any) -> bool:
    try:
        return bool(config().is_encoder_decoder)
    except Exception:  # those that must be given parts
        return False


def _first_of_module(config: Any) -> type[nn.Module]:
    from transformers import PreTrainedModel

    module = importlib.import_module(config.__module__.replace("configuration_", "modeling_"))
    own = [
        kind
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, PreTrainedModel) and kind.__module__ == module.__name__
    ]
    found = [kind for kind in own if kind.config_class is config and not kind.__name__.endswith("PreTrainedModel")]
    found = found or [kind for kind in own if "forward" in vars(kind) and _takes(kind, config)]
    if not found:
        raise LookupError(f"no network takes a {config.__name__}")
    return next((kind for kind in found if "forward" in vars(kind)), found[0])


def _takes(kind: type[nn.Module], config: Any) -> bool:
    given = list(inspect.signature(kind.__init__).parameters.values())[1:]
    return bool(given) and given[0].annotation in (config, config.__name__)
