"""Devices that a configuration names: where tensors are and models train."""

import torch


def device_named(name: str) -> torch.device:
    """Return a device of this machine.

    Parameters
    ----------
    name : str
        ``cpu``, ``cuda``, ``cuda:1``, ``mps``, ...; ``auto`` is a GPU of CUDA where there is one.

    Raises
    ------
    ValueError
        This machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    here = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}.get(device.type, 1)
    if (device.index or 0) >= here:
        raise ValueError(f"device={name}: PyTorch finds {here} such devices here; device=auto takes what there is")
    return device
