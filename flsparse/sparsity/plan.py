"""Plan of `sparsify`: the weights that are treated, and why others are left dense."""

from collections import defaultdict
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.parameter import is_lazy

from flsparse.sparsity import layers, reparametrized
from flsparse.sparsity.layers import BitReLU, LayerState, PowerConv1D, power_subclass

# Reparametrization and activation pruning.
_WHOLE: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: layers.PowerLinear,
    nn.Conv1d: layers.PowerConv1d,
    nn.Conv2d: layers.PowerConv2d,
    nn.Conv3d: layers.PowerConv3d,
}
# Reparametrization alone.
_ALONE: dict[type[nn.Module], type[nn.Module]] = {
    nn.LSTM: reparametrized.PowerLSTM,
    nn.GRU: reparametrized.PowerGRU,
    nn.RNN: reparametrized.PowerRNN,
    nn.MultiheadAttention: reparametrized.PowerMultiheadAttention,
    NonDynamicallyQuantizableLinear: reparametrized.PowerOutProjection,
    nn.ConvTranspose1d: reparametrized.PowerConvTranspose1d,
    nn.ConvTranspose2d: reparametrized.PowerConvTranspose2d,
    nn.ConvTranspose3d: reparametrized.PowerConvTranspose3d,
}
_EXACT = _WHOLE | _ALONE
_PLAIN = {power: plain for plain, power in _EXACT.items()} | {BitReLU: nn.ReLU}
_FORWARD = ("__call__", "_call_impl", "forward", "_conv_forward")
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def power_class(plain: type[nn.Module]) -> type[nn.Module] | None:
    """Return the class that a plain layer gets; None where layers of its class are left dense.

    A subclass without a forward pass of its own is treated as its base.
    """
    if plain in _EXACT:
        return _EXACT[plain]
    if f"{plain.__module__}.{plain.__qualname__}" == "transformers.pytorch_utils.Conv1D":
        return power_subclass(PowerConv1D, plain)
    for base, power in _WHOLE.items():
        own = any(getattr(plain, name, None) is not getattr(base, name, None) for name in _FORWARD)
        if issubclass(plain, base) and not own:
            return power_subclass(power, plain)
    return None


def plain_class(module: nn.Module) -> type[nn.Module]:
    """Return the class that a module had before `sparsify`."""
    kind: type[nn.Module] = type(module).__dict__.get("plain") or _PLAIN.get(type(module), type(module))
    return kind


class Weight(NamedTuple):
    """A weight of a layer that is treated: its owner, and its name inside the owner."""

    owner: nn.Module
    name: str

    @property
    def tensor(self) -> nn.Parameter:
        """The parameter itself."""
        return cast(nn.Parameter, self.owner._parameters[self.name])

    @property
    def state(self) -> LayerState:
        """State of a weight that is treated already."""
        held = self.owner.__dict__["powerprop"]
        return cast(LayerState, held[self.name] if isinstance(held, dict) else held)

    def treat(self, state: LayerState) -> None:
        """Exchange the owner's class and attach the state."""
        kind = type(self.owner)
        if kind in _ALONE or kind in _PLAIN:  # an owner of several weights has its class already
            self.owner.__dict__.setdefault("powerprop", {})[self.name] = state
        else:
            self.owner.__dict__["powerprop"] = state
        self.owner.__class__ = power_class(kind) or kind


class Plan(NamedTuple):
    """Plan for a plain module.

    Attributes
    ----------
    weights : dict[str, Weight]
        Weights to treat, by state-dict name.
    alone : list[str]
        Modules that get the reparametrization alone.
    dense : list[str]
        Modules with weight matrices that are left alone, with the reason where the class is not it.
    """

    weights: dict[str, Weight]
    alone: list[str]
    dense: list[str]


def treated(model: nn.Module) -> dict[str, Weight]:
    """Return the weights of a sparsified module that are treated, by state-dict name; nothing of a plain module."""
    found = {}
    for prefix, module in model.named_modules():
        state = module.__dict__.get("powerprop", {})
        for name in state if isinstance(state, dict) else ["weight"]:
            if name in module._parameters:  # not where torch's own parametrizations or pruning came on top
                found[f"{prefix}.{name}".lstrip(".")] = Weight(module, name)
    return found


def plan_of(model: nn.Module) -> Plan:
    """Return which weights of a plain module are treated, and which modules are left dense.

    Raises
    ------
    ValueError
        When a lazy layer has no weights yet.
    """
    plan, tied = Plan({}, [], []), overlapping(model)
    for prefix, module in model.named_modules():
        parameters = {name: p for name, p in module._parameters.items() if p is not None}
        label = f"{prefix or '(root)'} ({type(module).__name__})"
        if any(is_lazy(p) for p in parameters.values()):
            raise ValueError(f"{label} has no weights yet: run a batch through the model before sparsify")
        matrices = {name: p for name, p in parameters.items() if p.dim() >= 2}
        names = _names(module) if power_class(type(module)) else []
        if not names or not set(names) <= set(matrices):  # weight_norm, parametrize, prune rename what they take
            plan.dense.extend([label] if matrices else [])
            continue
        reasons = {name: _reason(matrices[name], tied) for name in names}
        taken = [name for name, reason in reasons.items() if reason is None]
        plan.weights.update({f"{prefix}.{name}".lstrip("."): Weight(module, name) for name in taken})
        if taken and type(module) in _ALONE:
            plan.alone.append(label)
        for name, reason in reasons.items():
            if reason:
                plan.dense.append(f"{label}, {reason}" if len(names) == 1 else f"{label}, {name}: {reason}")
    return plan


def _names(module: nn.Module) -> list[str]:
    if isinstance(module, nn.MultiheadAttention):
        return ["in_proj_weight"] if module._qkv_same_embed_dim else [f"{one}_proj_weight" for one in "qkv"]
    if isinstance(module, nn.RNNBase):
        return [name for name in module._flat_weights_names if name.startswith("weight")]
    return ["weight"]


def _reason(weight: Tensor, tied: set[int]) -> str | None:
    """Return why a weight is left dense, or None."""
    if type(weight) is not nn.Parameter:  # quantized, sharded
        return f"weights of class {type(weight).__name__}"
    if weight.dtype not in _DTYPES:
        return f"{str(weight.dtype).removeprefix('torch.')} weights"
    if id(weight) in tied:
        return "tied weights"
    # |v|^(beta - 1) is zero at zero: such a layer would never move.
    if weight.numel() and not weight.is_meta and not torch.count_nonzero(weight.detach()):
        return "starts at zero"
    return None


def overlapping(model: nn.Module) -> set[int]:
    """Return the ids of a module's tensors that share memory with another one, or have a second name.

    Parameters, buffers and tensors that are plain attributes count: whatever is written into one changes the other.
    """
    tensors: list[Tensor] = [p for _, p in model.named_parameters(remove_duplicate=False) if not is_lazy(p)]
    for module in model.modules():
        kept = (*module._buffers.values(), *vars(module).values())
        tensors += [each for each in kept if isinstance(each, Tensor) and not is_lazy(each)]
    spans: defaultdict[int, list[tuple[int, int, int]]] = defaultdict(list)
    for each in tensors:
        if each.layout is not torch.strided or not each.numel():
            continue
        size = each.element_size()
        start = int(each.storage_offset()) * size
        last = sum((int(n) - 1) * int(stride) for n, stride in zip(each.shape, each.stride(), strict=True))
        storage = id(each) if each.is_meta else each.untyped_storage().data_ptr()
        spans[storage].append((start, start + (last + 1) * size, id(each)))
    found = set()
    for group in spans.values():
        end, before = -1, 0
        for start, stop, this in sorted(group):
            if start < end:
                found |= {before, this}
            if stop > end:
                end, before = stop, this
    return found
