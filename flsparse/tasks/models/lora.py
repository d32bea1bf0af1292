"""LoRA (Hu et al. 2022, arXiv 2106.09685) through peft: a frozen model, and adapters of low rank that train.

w = w_0 + alpha / rank * B A        A: (rank, inputs), drawn; B: (outputs, rank), 0 at the start, so outputs are w_0's
"""

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, cast

from torch import nn

from flsparse.configs import did_you_mean
from flsparse.nets.hidden import named_by
from flsparse.ranges import within
from flsparse.tasks.torchvision_compat import import_torchvision

_ADAPTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_ALIKE = "Conv1D"  # of transformers, a linear layer


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Adapters of a model.

    Attributes
    ----------
    rank : int
        At least 1.
    alpha : float
        Above 0; an adapter's output counts ``alpha / rank`` times.
    targets : list of str, optional
        Patterns of the layers that get an adapter, such as ``*.attention.*``; by default all linear and convolution
        layers.
    trainable : list of str
        Patterns of arrays that train whole beside the adapters, such as a head's ``12.*``; their layers get none.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: Sequence[str | int] | None = None
    trainable: Sequence[str] = ()

    def __post_init__(self) -> None:
        within("[1, inf)", rank=self.rank)
        within("(0, inf)", alpha=self.alpha)


def add_adapters(model: nn.Module, lora: Lora) -> list[str]:
    """Give a model's layers adapters, in place, and return the state-dict keys of all that is to be frozen.

    An adapted layer ``x`` keeps its arrays as ``x.base_layer.*``, and has ``x.lora_A.default.weight`` and
    ``x.lora_B.default.weight``. Torch's generator draws the former.

    Raises
    ------
    ModuleNotFoundError
        peft is not installed.
    ValueError
        A pattern names nothing.
    """
    try:
        import_torchvision()  # before transformers, which peft imports
        from peft import LoraConfig, inject_adapter_in_model
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"model.lora needs peft ({error}): pip install peft") from error
    whole = named_by(model, lora.trainable, "model.lora.trainable")
    names = _targets(model, lora, {name.rpartition(".")[0] for name in whole})
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=cast(Any, lora.alpha),
        target_modules="|".join(map(re.escape, names)),
        init_lora_weights=True,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to False")  # of transformers' Conv1D; peft sets it
        inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        if name in whole:
            parameter.requires_grad_(True)
    adapters = {f"{name}.lora_{factor}.default.weight" for name in names for factor in "AB"}
    return [name for name in model.state_dict() if name not in whole and name not in adapters]


def _targets(model: nn.Module, lora: Lora, left_out: set[str]) -> list[str]:
    """Return the names of the layers that get an adapter."""
    layers = [
        name
        for name, module in model.named_modules()
        if (isinstance(module, _ADAPTED) or type(module).__name__ == _ALIKE) and name not in left_out
    ]
    patterns = ["*"] if lora.targets is None else list(map(str, lora.targets))
    for pattern in patterns if layers else ():
        if not any(fnmatchcase(name, pattern) for name in layers):
            raise ValueError(
                f"model.lora.targets: {pattern!r} names no linear or convolution layer{did_you_mean(pattern, layers)}"
                f"; there are {', '.join(layers[:6])}{' ...' * (len(layers) > 6)}"
            )
    chosen = [name for name in layers if any(fnmatchcase(name, each) for each in patterns)]
    if not chosen:
        raise ValueError("model.lora: the model has no linear or convolution layer to adapt: use model.freeze")
    return chosen
