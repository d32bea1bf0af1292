"""Outputs of two modules on one batch, compared module by module: whether a conversion left them as they were."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flsparse.nets.seeded import seeded
from flsparse.sparsity.plan import plain_class

Outputs = dict[str, list[Tensor]]


def check_outputs(before: nn.Module, after: nn.Module, batch: Any) -> None:
    """Refuse a module whose outputs are not those of the one that it was made from, as before and after `sparsify`.

    Both run in eval mode, with and without gradients; their modes, and torch's generators, are restored.

    Parameters
    ----------
    before, after : Module
        Two modules with the same names of submodules and equal weights ``w``.
    batch : Any
        Inputs of both: positional ones as a tuple, named ones as a mapping, anything else as the only one.

    Raises
    ------
    ValueError
        When outputs differ by more than ``sqrt(eps)`` of the largest one, ``eps`` of their dtype; the message names the
        first submodule where they do.
    """
    compare(outputs_of(before, batch), outputs_of(after, batch), after)


def outputs_of(model: nn.Module, batch: Any) -> Outputs:
    """Return copies of the floating tensors that each submodule returns, by its name, in the order of their returns."""
    found: Outputs = {}
    names = {module: name for name, module in model.named_modules()}

    def keep(module: nn.Module, _inputs: Any, output: Any) -> None:
        found.setdefault(names[module], []).extend(each.detach().clone() for each in _tensors(output))

    modes = {module: module.training for module in model.modules()}
    fused = torch.backends.mha.get_fastpath_enabled()
    handles = [module.register_forward_hook(keep) for module in model.modules()]
    try:
        model.eval()
        torch.backends.mha.set_fastpath_enabled(False)  # it passes by the modules inside, and dislikes hooks
        _run(model, batch, gradients=True)
        for handle in handles:
            handle.remove()
        torch.backends.mha.set_fastpath_enabled(fused)
        found.setdefault("", []).extend(each.detach() for each in _tensors(_run(model, batch, gradients=False)))
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    return found


def compare(before: Outputs, after: Outputs, model: nn.Module) -> None:
    """Refuse the outputs ``after`` where they differ from those ``before``; see `check_outputs`."""
    for name, outputs in after.items():
        for old, new in zip(before.get(name, []), outputs, strict=False):
            if not old.numel() or not torch.isfinite(old).all():
                continue
            limit = float(old.abs().max()) * torch.finfo(old.dtype).eps ** 0.5
            error = float((new - old).abs().max())
            if not error <= limit:
                label = f"{name or '(root)'} ({plain_class(model.get_submodule(name)).__name__})"
                raise ValueError(
                    f"sparsify changes the outputs of {label} by {error:.2g}, more than {limit:.2g}: a weight is read "
                    "there past its layer; let it read layer.weight inside its forward, or sparsify the other modules"
                )


def _run(model: nn.Module, batch: Any, *, gradients: bool) -> Any:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with seeded(0, device), torch.set_grad_enabled(gradients):
        if isinstance(batch, Mapping):
            return model(**batch)
        return model(*batch) if isinstance(batch, tuple) else model(batch)


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        if output.is_floating_point() or output.is_complex():
            yield output
    elif isinstance(output, Mapping):
        for each in output.values():
            yield from _tensors(each)
    elif isinstance(output, tuple | list):
        for each in output:
            yield from _tensors(each)
