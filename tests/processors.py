"""Processors on one machine: the environment that turns all that is optional off, and inputs alike on all.

``python tests/processors.py COMMAND ...`` runs a command in it, as ``make test-plain`` does.
"""

import os
import platform
import sys

import numpy as np
from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__  # type: ignore[import-not-found]


def plain_processor() -> dict[str, str]:
    """Return the variables under which NumPy, torch and the C library use no optional feature of this processor.

    The codec does without its compiled kernel there.
    """
    optional = [name for name in __cpu_dispatch__ if __cpu_features__.get(name)]
    already = os.environ.get("NPY_DISABLE_CPU_FEATURES", "").split()
    is_x86 = platform.machine() in ("x86_64", "AMD64")
    return {
        "NPY_DISABLE_CPU_FEATURES": " ".join([*already, *optional]),
        "OPENBLAS_CORETYPE": "Nehalem" if is_x86 else "ARMV8",
        "ATEN_CPU_CAPABILITY": "default",  # torch's own kernels
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA,-FMA4,-AVX512F,-AVX512VL,-AVX512BW,-AVX512DQ",  # exp, log, pow
        "FLSPARSE_KERNEL": "0",
    }


def pseudo(count: int, salt: int) -> np.ndarray:
    """Return numbers in [-1, 1), float64, from a multiplicative congruential sequence: no library changes them."""
    x, out = (salt * 2654435761 + 12345) % 2**31 | 1, []
    for _ in range(count):
        x = x * 48271 % (2**31 - 1)
        out.append(x / 2**30 - 1)
    return np.array(out)


def cubed(x: np.ndarray) -> np.ndarray:
    """Return ``x * x * x``, in the dtype of x: many small values and few large ones, as weights are."""
    return np.asarray(x * x * x)


if __name__ == "__main__":
    os.execvpe(sys.argv[1], sys.argv[1:], os.environ | plain_processor())
