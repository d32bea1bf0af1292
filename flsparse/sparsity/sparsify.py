"""Turn a module into one with Powerpropagation layers and activation pruning, and back into a plain one."""

import copy
import logging
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from flsparse.ranges import one_of
from flsparse.sparsity.layers import BitReLU, LayerState
from flsparse.sparsity.outputs import compare, outputs_of
from flsparse.sparsity.plan import Weight, plain_class, plan_of, treated
from flsparse.sparsity.powerprop import inverse_power, power, spectral_exponent, spectral_inverse

logger = logging.getLogger(__name__)

# From this sparsity on, a ReLU's saved result takes more memory than the inputs that convolutions save.
_BITS_FROM_SPARSITY = 0.5


def prunable_names(model: nn.Module) -> list[str]:
    """Return the state-dict names of the weights that `sparsify` treated, or would treat on a plain module."""
    return list(_weights(model))


def _weights(model: nn.Module) -> dict[str, Weight]:
    return treated(model) if is_sparsified(model) else plan_of(model).weights


def is_sparsified(model: nn.Module) -> bool:
    """Tell whether `sparsify` treated any weight of a module."""
    return any("powerprop" in module.__dict__ for module in model.modules())


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
    example: Any = None,
) -> nn.Module:
    """Turn linear and convolution layers into Powerpropagation layers with activation pruning, in place.

    The parameters keep their names and identity and afterwards hold ``v`` (``w = sign(v)|v|^beta``); present weights
    are converted, so that outputs do not change. Whoever reads ``layer.weight`` inside a forward pass gets ``w``,
    outside of it the parameter ``v``. LSTM, GRU, RNN, MultiheadAttention and ConvTranspose1d/2d/3d get the
    reparametrization alone. Tied weights, weights that are all zero (they could not move), subclasses with a forward of
    their own and modules that are parametrized already stay dense. Both kinds are named in one log line.

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
    example : Any, optional
        A batch as `check_outputs` takes it: the outputs of all modules are compared before and after.

    Returns
    -------
    Module
        ``model`` itself. Loading a state dict into it starts a new fit, as `begin_fit` does.

    Raises
    ------
    ValueError
        When ``beta`` is below 1, an option is unknown, the module is sparsified already, or a weight cannot be
        converted (lazy, on the meta device, made in inference mode); when the outputs change on the example, the
        module is as it was before.
    """
    check_layers(beta, activation_threshold)
    if is_sparsified(model):
        raise ValueError("the module is sparsified already; export_dense gives back a plain one")
    before = None if example is None else outputs_of(model, example)
    plan = plan_of(model)
    for name, weight in plan.weights.items():
        _check_convertible(name, weight.tensor)
    plain = {} if example is None else {name: weight.tensor.detach().clone() for name, weight in plan.weights.items()}
    for weight in plan.weights.values():
        exponent = _store(weight.tensor, beta)
        weight.treat(LayerState(exponent, beta == "spectral", activation_pruning, activation_threshold == "exact"))
    for module in model.modules():
        if activation_pruning and type(module) is nn.ReLU:
            module.__class__ = BitReLU
    model.register_load_state_dict_post_hook(_on_load)
    begin_fit(model)
    if before is not None:
        try:
            compare(before, outputs_of(model, example), model)
        except Exception:
            _make_plain(model, plain)
            raise
    if plan.alone or plan.dense:
        logger.info(
            "sparsify: reparametrization alone: %s; left dense: %s",
            "; ".join(plan.alone) or "none",
            "; ".join(plan.dense) or "none",
        )
    return model


def _check_convertible(name: str, weight: Tensor) -> None:
    if weight.is_meta:
        raise ValueError(f"{name} is on the meta device: load the model's weights before sparsify")
    if weight.is_inference():
        raise ValueError(f"{name} was made in inference mode and cannot be trained: build the model outside of it")


def _store(weight: Tensor, beta: float | Literal["spectral"]) -> float:
    """Replace the weight by its ``v``, in place, and return the exponent."""
    if beta == 1.0:
        return 1.0
    v, exponent = spectral_inverse(weight) if beta == "spectral" else (inverse_power(weight, beta), beta)
    with torch.no_grad():
        weight.copy_(v)
    return exponent


def begin_fit(model: nn.Module) -> None:
    """Mark the start of a local fit: compute each layer's sparsity and spectral exponent, clear thresholds.

    Loading a state dict calls it too; call it after weights were set in another way.
    """
    size = zeros = 0
    for weight in treated(model).values():
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
    for name, weight in _weights(model).items():
        held = weight.owner.__dict__.get("powerprop")
        pruning = isinstance(held, LayerState) and held.pruning
        module = name[: -len(weight.name)].rstrip(".")
        if isinstance(weight.owner, NonDynamicallyQuantizableLinear):  # computes inside its attention layer
            module = module.rpartition(".")[0]
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
    for name, module in model.named_modules():
        if "powerprop" in module.__dict__ and (plain_class(module) is type(module) or not _has_weights(module)):
            raise ValueError(
                f"{name or '(root)'} was parametrized or pruned by torch after sparsify: remove that first"
            )
    plain = _copied(model)
    _make_plain(plain, {name: power(w.tensor.detach(), w.state.beta) for name, w in treated(plain).items()})
    return plain


def _has_weights(module: nn.Module) -> bool:
    state = module.__dict__["powerprop"]
    return set(state if isinstance(state, dict) else ["weight"]) <= set(module._parameters)


def _make_plain(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give a sparsified module its plain classes and these weights, in place."""
    with torch.no_grad():
        for name, weight in treated(model).items():
            weight.tensor.copy_(weights[name])
    for module in model.modules():
        module.__class__ = plain_class(module)
        for attribute in ("powerprop", "as_bits"):
            module.__dict__.pop(attribute, None)
        hooks = module._load_state_dict_post_hooks
        for key in [key for key, hook in hooks.items() if hook is _on_load]:
            del hooks[key]


def _copied(model: nn.Module) -> nn.Module:
    """Return a deep copy, in which tensors computed from others (`torch.nn.utils.weight_norm`) have no history."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for each in _tensors_in(vars(module)):
            if not each.is_leaf:
                memo[id(each)] = each.detach().clone()
    try:
        return copy.deepcopy(model, dict(memo))
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"{_not_copied(model, memo)} cannot be copied: {str(error).splitlines()[0]}") from error


def _not_copied(model: nn.Module, memo: dict[int, Any]) -> str:
    """Return the first attribute that a deep copy stumbles over, with its module."""
    for prefix, module in model.named_modules():
        for name, value in vars(module).items():
            try:
                _ = None if name == "_modules" else copy.deepcopy(value, dict(memo))
            except (RuntimeError, TypeError):
                return f"{prefix}.{name}".lstrip(".")
    return type(model).__name__


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _tensors_in(each)
    elif isinstance(value, list | tuple | set):
        for each in value:
            yield from _tensors_in(each)
