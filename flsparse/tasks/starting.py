"""The model that a task starts from: of the seed, with weights of a file, with adapters; what is frozen or local."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flsparse import rng
from flsparse.configs import build
from flsparse.nets.frozen import freeze
from flsparse.nets.personal import keep_local
from flsparse.nets.seeded import seeded
from flsparse.nets.weights import load_weights
from flsparse.tasks.data import Source
from flsparse.tasks.models import build_model
from flsparse.tasks.models.lora import Lora, add_adapters


@dataclass(frozen=True)
class Start:
    """A model to start from.

    Attributes
    ----------
    model : nn.Module
    frozen : list of str
        State-dict keys of the arrays that never train.
    local : list of str
        State-dict keys of the arrays that stay on their node.
    """

    model: nn.Module
    frozen: list[str]
    local: list[str]


@dataclass(frozen=True)
class ModelPlan:
    """The section ``model`` of a configuration.

    Attributes
    ----------
    config : Mapping
        ``name`` and the model's own arguments.
    weights, fresh
        A file of weights, and patterns of arrays that are left as the seed makes them.
    frozen_patterns, local_patterns : sequence of str
        Patterns of arrays.
    lora : Lora or None
        Adapters; all else is frozen.
    """

    config: Mapping[str, Any]
    weights: str | None
    fresh: Sequence[str]
    frozen_patterns: Sequence[str]
    local_patterns: Sequence[str]
    lora: Lora | None

    @classmethod
    def of(cls, section: Mapping[str, Any]) -> "ModelPlan":
        """Read a section; ValueError where adapters are asked for that cannot be."""
        config = dict(section)
        weights, fresh, frozen, local, lora = (
            config.pop(key, None) for key in ("weights", "fresh", "freeze", "local", "lora")
        )
        adapters = build({"lora": Lora}, "lora", lora, what="model.lora") if lora else None
        return cls(config, weights, fresh or (), frozen or (), local or (), adapters)

    @property
    def freezes(self) -> bool:
        """Whether any array is frozen."""
        return bool(self.frozen_patterns or self.lora)

    def make(self, source: Source, num_outputs: int, seed: int, device: torch.device) -> Start:
        """Return the model for a data set; what is drawn follows the seed alone, and no global generator moves.

        Weights are read where arrays are frozen, since who can make these is not sent them; a node without the file is.
        Else they are the server's, which sends what comes of them.
        """
        cpu = torch.device("cpu")
        with seeded(rng.derive(seed, 0, -1, "init"), cpu):
            model = build_model(self.config, source.input_shape, num_outputs, is_text=source.is_text)
        if self.freezes and self.weights is not None and Path(self.weights).expanduser().is_file():
            load_weights(model, self.weights, self.fresh)
        base = list(self.frozen_patterns)
        if self.lora is not None:
            with seeded(rng.derive(seed, 0, -1, "lora"), cpu):
                base += add_adapters(model, self.lora)
        frozen = freeze(model, base) if base else []
        model = model.to(device)
        return Start(model, frozen, keep_local(model, self.local_patterns) if self.local_patterns else [])
