"""Turn a module into one with Powerpropagation layers and activation pruning, and back into a plain one."""

import copy
import logging
from collections import Counter
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from flsparse.ranges import one_of
from flsparse.sparsity import layers, recurrent
from flsparse.sparsity.layers import BitReLU, LayerState
from flsparse.sparsity.powerprop import inverse_power, power, spectral_exponent, spectral_inverse

logger = logging.getLogger(__name__)

_LAYERS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: layers.PowerLinear,
    nn.Conv1d: layers.PowerConv1d,
    nn.Conv2d: layers.PowerConv2d,
    nn.Conv3d: layers.PowerConv3d,
}
_PARTIAL: dict[type[nn.Module], type[nn.Module]] = {
    nn.LSTM: recurrent.PowerLSTM,
    nn.GRU: recurrent.PowerGRU,
    nn.RNN: recurrent.PowerRNN,
    nn.MultiheadAttention: recurrent.PowerMultiheadAttention,
}
_POWER = {**_LAYERS, **_PARTIAL}
_PLAIN = dict(zip(_POWER.values(), _POWER.keys(), strict=True))
_PLAIN[BitReLU] = nn.ReLU
# In eval mode these take a fused path that reads the weights past the layers' forward.
_FAST_PATHS: dict[type[nn.Module], dict[str, Any]] = {
    nn.TransformerEncoderLayer: {"activation_relu_or_gelu": 0},
    nn.TransformerEncoder: {"use_nested_tensor": False},
}
# From this sparsity on, a ReLU's saved result takes more memory than the inputs that convolutions save.
_BITS_FROM_SPARSITY = 0.5


class _Weight(NamedTuple):
    """One weight that the reparametrization takes: its owner and its name inside the owner."""

    owner: nn.Module
    name: str

    @property
    def tensor(self) -> Tensor:
        return self.owner.get_parameter(self.name)

    @property
    def state(self) -> LayerState:
        held = self.owner.powerprop
        return cast(LayerState, held[self.name] if isinstance(held, dict) else held)


class _Plan(NamedTuple):
    weights: dict[str, _Weight]  # by state-dict name
    partly: list[str]  # modules that get the reparametrization alone
    dense: list[str]  # modules with weight matrices that are left alone


def _plan(model: nn.Module) -> _Plan:
    plan = _Plan({}, [], [])
    uses = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    claimed: set[int] = set()
    for prefix, module in model.named_modules():
        matrices = [
            name for name in recurrent.matrices_of(module) if torch.is_floating_point(module.get_parameter(name))
        ]
        if not matrices or id(module) in claimed:
            continue
        kind = _PLAIN.get(type(module), type(module))
        label = f"{prefix or '(root)'} ({kind.__name__})"
        # Hand-made reparametrizations (weight_norm, parametrize, prune) leave no plain parameter of that name.
        whole = kind in _LAYERS and matrices == ["weight"]
        if any(uses[id(module.get_parameter(name))] > 1 for name in matrices):
            plan.dense.append(f"{label}, tied weights")
        elif whole or kind in _PARTIAL:
            plan.weights.update({f"{prefix}.{name}".lstrip("."): _Weight(module, name) for name in matrices})
            if kind in _PARTIAL:
                plan.partly.append(label)
        else:
            plan.dense.append(label)
        if isinstance(module, nn.MultiheadAttention):
            claimed.add(id(module.out_proj))
    return plan


def prunable_names(model: nn.Module) -> list[str]:
    """Return the state-dict names of the weights that `sparsify` treated, or would treat on a plain module."""
    return list(_plan(model).weights)


def check_layers(beta: object, activation_threshold: object) -> None:
    """Refuse an exponent below 1, or a threshold that is neither "frozen" nor "exact", with a ValueError."""
    if beta != "spectral" and not (isinstance(beta, int | float) and 1 <= beta < float("inf")):
        raise ValueError(f"beta={beta!r} is neither 'spectral' nor a number in [1, inf)")
    one_of(("frozen", "exact"), activation_threshold=activation_threshold)


def sparsify(
    model: nn.Module,
    beta: float | Literal["spectral"] = 1.25,
    *,
    activation_pruning: bool = True,
    activation_threshold: Literal["frozen", "exact"] = "frozen",
) -> nn.Module:
    """Turn Conv1d/2d/3d and Linear layers into Powerpropagation layers with activation pruning, in place.

    The parameters keep their names and identity and afterwards hold ``v`` (``w = sign(v)|v|^beta``); present weights
    are converted, so that outputs do not change. LSTM, GRU, RNN and MultiheadAttention get the reparametrization
    alone. Tied weights, subclasses with a forward of their own and modules that are parametrized already stay dense.
    Both kinds are named in one log line.

    Parameters
    ----------
    model : Module
        Any module that is not sparsified yet.
    beta : float | "spectral"
        Exponent, at least 1; ``"spectral"`` derives one per layer at the start of each fit (`spectral_exponent`).
    activation_pruning : bool
        Whether the inputs saved for the weight gradients are pruned to their layer's weight sparsity while training;
        on by default as in the paper, where the strategy ``SparsyFed`` leaves them alone.
    activation_threshold : "frozen" | "exact"
        ``"frozen"`` finds the pruning threshold on the first training batch of a fit, ``"exact"`` on every batch.

    Returns
    -------
    Module
        ``model`` itself. Loading a state dict into it starts a new fit, as `begin_fit` does.

    Raises
    ------
    ValueError
        When ``beta`` is below 1, an option is unknown, or the module is sparsified already.
    """
    check_layers(beta, activation_threshold)
    if any(type(module) in _PLAIN for module in model.modules()):
        raise ValueError("the module is sparsified already; export_dense gives back a plain one")
    plan = _plan(model)
    for weight in plan.weights.values():
        exponent = _store(weight, beta)
        state = LayerState(exponent, beta == "spectral", activation_pruning, activation_threshold == "exact")
        _attach(weight, state)
    for module in model.modules():
        if activation_pruning and type(module) is nn.ReLU:
            module.__class__ = BitReLU
        for kind, flags in _FAST_PATHS.items():
            if isinstance(module, kind):
                module.__dict__["fast_path"] = {flag: getattr(module, flag) for flag in flags if hasattr(module, flag)}
                module.__dict__.update(flags)
    model.register_load_state_dict_post_hook(_on_load)
    begin_fit(model)
    if plan.partly or plan.dense:
        logger.info(
            "sparsify: reparametrization alone: %s; left dense: %s",
            "; ".join(plan.partly) or "none",
            "; ".join(plan.dense) or "none",
        )
    return model


def _store(weight: _Weight, beta: float | Literal["spectral"]) -> float:
    """Replace the weight by its ``v``, in place, and return the exponent."""
    if beta == 1.0:
        return 1.0
    v, exponent = spectral_inverse(weight.tensor) if beta == "spectral" else (inverse_power(weight.tensor, beta), beta)
    with torch.no_grad():
        weight.tensor.copy_(v)
    return exponent


def _attach(weight: _Weight, state: LayerState) -> None:
    kind = type(weight.owner)
    if kind in _LAYERS:
        weight.owner.__dict__["powerprop"] = state
    else:
        weight.owner.__dict__.setdefault("powerprop", {})[weight.name] = state
    weight.owner.__class__ = _POWER.get(kind, kind)


def begin_fit(model: nn.Module) -> None:
    """Mark the start of a local fit: compute each layer's sparsity and spectral exponent, clear thresholds.

    Loading a state dict calls it too; call it after weights were set in another way.
    """
    size = zeros = 0
    for weight in _plan(model).weights.values():
        if not hasattr(weight.owner, "powerprop"):
            continue
        state, v = weight.state, weight.tensor.detach()
        empty = v.numel() - int(torch.count_nonzero(v))
        size, zeros = size + v.numel(), zeros + empty
        state.sparsity = empty / max(1, v.numel())
        state.threshold = None
        if state.spectral:
            state.beta = spectral_exponent(v)
    for module in model.modules():
        if isinstance(module, BitReLU):
            module.as_bits = zeros >= _BITS_FROM_SPARSITY * size


def layer_densities(model: nn.Module) -> dict[str, tuple[float, float]]:
    """Return ``(d_w, d_a)`` by module name: density of the weights, and of the inputs saved for their gradient.

    Both are in [0, 1]. Modules that `sparsify` treated, or would treat; without activation pruning ``d_a`` is 1.
    """
    found: dict[str, list[tuple[int, int, bool]]] = {}
    for name, weight in _plan(model).weights.items():
        held = getattr(weight.owner, "powerprop", None)
        pruning = isinstance(held, LayerState) and held.pruning
        module = name[: -len(weight.name)].rstrip(".")
        kept = int(torch.count_nonzero(weight.tensor.detach()))
        found.setdefault(module, []).append((kept, weight.tensor.numel(), pruning))
    densities = {}
    for module, counts in found.items():
        density = sum(kept for kept, _, _ in counts) / max(1, sum(size for _, size, _ in counts))
        densities[module] = (density, density if counts[0][2] else 1.0)
    return densities


def _on_load(model: nn.Module, _incompatible_keys: Any) -> None:
    begin_fit(model)


def export_dense(model: nn.Module) -> nn.Module:
    """Return a plain copy of a sparsified module: the original classes, ``w`` in the place of ``v``, equal outputs.

    The module that is given is left as it is. A plain module comes back as a plain copy.
    """
    plain = copy.deepcopy(model)
    weights = _plan(plain).weights.values()
    with torch.no_grad():
        for weight in weights:
            if hasattr(weight.owner, "powerprop"):
                weight.tensor.copy_(power(weight.tensor, weight.state.beta))
    for module in plain.modules():
        module.__class__ = _PLAIN.get(type(module), type(module))
        module.__dict__.update(module.__dict__.pop("fast_path", {}))
        for attribute in ("powerprop", "as_bits"):
            module.__dict__.pop(attribute, None)
        hooks = module._load_state_dict_post_hooks
        for key in [key for key, hook in hooks.items() if hook is _on_load]:
            del hooks[key]
    return plain
