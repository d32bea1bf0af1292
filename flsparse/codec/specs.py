"""Specs and references, known to both ends of a payload: names, shapes and dtypes, and the reference model."""

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from types import MappingProxyType
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

FLOATS = ("float16", "float32", "float64")
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
COMPLEX = {"complex64": "float32", "complex128": "float64"}  # and the dtype of their real and imaginary parts
DTYPES = (*FLOATS, *INTEGERS, "bool", *COMPLEX)  # a dtype's place in this list is its id in fingerprints
Derived = TypeVar("Derived")
_IDS = {np.dtype(name): i for i, name in enumerate(DTYPES)}
_PARTS = {np.dtype(name): np.dtype(part) for name, part in COMPLEX.items()}
_MARK = "!"  # before the name of a stored exact array
_EXACT = 0x80  # beside a dtype's id


@dataclass(frozen=True)
class ArraySpec:
    """Shape and dtype of one array, and whether its values may be rounded.

    Parameters
    ----------
    shape : tuple of int
        Empty for a 0-d array; a dimension may be 0.
    dtype : np.dtype
        One of float16/32/64, complex64/128, (u)int8/16/32/64 and bool, in native byte order.
    exact : bool
        Floating or complex, and yet no weight: it travels bit for bit, NaN and infinity included. Integers and
        booleans always do.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    exact: bool = False

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the dense array."""
        return self.size * self.dtype.itemsize


Specs = Mapping[str, ArraySpec]


def specs_of(arrays: Mapping[str, np.ndarray | ArraySpec], exact: Collection[str] = ()) -> dict[str, ArraySpec]:
    """Return the specs of named arrays, in order.

    Parameters
    ----------
    arrays : mapping of str to np.ndarray or ArraySpec
        Ordered; specs pass through.
    exact : collection of str
        Names of the floating and complex arrays that travel bit for bit; others are of no account.

    Raises
    ------
    ValueError
        For a dtype that the codec does not carry.

    Examples
    --------
    >>> specs_of({"w": np.zeros((2, 3), np.float32)})["w"].nbytes
    24
    """
    specs = {}
    for name, array in arrays.items():
        dtype = np.dtype(array.dtype).newbyteorder("=")
        if dtype not in _IDS:
            raise ValueError(f"array {name!r} has dtype {array.dtype}; the codec carries {', '.join(DTYPES)}")
        kept = array.exact if isinstance(array, ArraySpec) else name in exact and dtype.kind in "fc"
        specs[name] = ArraySpec(tuple(int(n) for n in array.shape), dtype, kept)
    return specs


def exact_names(specs: Specs) -> frozenset[str]:
    """Return the names of the floating and complex arrays that travel bit for bit."""
    return frozenset(name for name, spec in specs.items() if spec.exact)


def in_parts(specs: Specs) -> dict[str, ArraySpec]:
    """Return specs in which a complex array is a floating one of real and imaginary parts, a dimension more."""
    return {
        name: replace(spec, shape=(*spec.shape, 2), dtype=_PARTS[spec.dtype]) if spec.dtype in _PARTS else spec
        for name, spec in specs.items()
    }


def describe(specs: Specs) -> bytes:
    """Serialize specs canonically: the input of fingerprints and reference ids."""
    parts = [len(specs).to_bytes(4, "little")]
    for name, spec in specs.items():
        label = name.encode("utf-8", "surrogatepass")
        kind = _IDS[spec.dtype] | (_EXACT if spec.exact else 0)
        parts += [len(label).to_bytes(4, "little"), label, bytes([kind, len(spec.shape)])]
        parts += [n.to_bytes(8, "little") for n in spec.shape]
    return b"".join(parts)


def fingerprint(specs: Specs) -> bytes:
    """Return the 4 bytes that tell one set of names, shapes and dtypes from another."""
    return hashlib.blake2b(describe(specs), digest_size=4).digest()


def flatten(arrays: Mapping[str, np.ndarray], specs: Specs) -> dict[str, np.ndarray]:
    """Return every array as 1-D, contiguous, in native byte order, complex ones in parts; a view where possible."""
    return {name: _flat(np.asarray(arrays[name], dtype=spec.dtype)) for name, spec in specs.items()}


def _flat(array: np.ndarray) -> np.ndarray:
    flat = np.ravel(array)
    return flat.view(_PARTS.get(flat.dtype, flat.dtype))


class Reference:
    """Model that both ends hold and payloads are coded against. Immutable.

    Parameters
    ----------
    arrays : mapping of str to np.ndarray
        Ordered. They are copied, so later changes to the originals do no harm.
    exact : collection of str
        Names of the arrays that travel bit for bit (:attr:`ArraySpec.exact`).

    Raises
    ------
    ValueError
        For an unknown dtype, or NaN or infinity in an array that is not exact.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], exact: Collection[str] = ()) -> None:
        self.specs: Specs = MappingProxyType(specs_of(arrays, exact))
        frozen = {}
        for name, spec in self.specs.items():
            array = np.array(arrays[name], dtype=spec.dtype, order="C")
            if spec.dtype.kind in "fc" and not spec.exact and not np.isfinite(array).all():
                raise ValueError(f"array {name!r} of the reference holds NaN or infinity")
            array.flags.writeable = False
            frozen[name] = array
        self.arrays: Mapping[str, np.ndarray] = MappingProxyType(frozen)
        self._flat = {name: _flat(array) for name, array in frozen.items()}
        self._supports: dict[str, NDArray[np.int64]] = {}
        self._kept: dict[str, np.ndarray] = {}
        self._derived: tuple[object, Any] = (None, None)

    @cached_property
    def id(self) -> str:
        """Content hash over names, shapes, dtypes and bytes: 32 hex characters."""
        digest = hashlib.blake2b(describe(self.specs), digest_size=16)
        for array in self.arrays.values():
            little = array.astype(array.dtype.newbyteorder("<"), copy=False)
            digest.update(little.reshape(-1).view(np.uint8).data)
        return digest.hexdigest()

    @cached_property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(spec.nbytes for spec in self.specs.values())

    @cached_property
    def fingerprint(self) -> bytes:
        """See :func:`fingerprint`."""
        return fingerprint(self.specs)

    def support(self, name: str) -> NDArray[np.int64]:
        """Return the positions of one array that are not zero: flat, strictly increasing; kept where they are few."""
        found = self._supports.get(name)
        if found is None:
            found = np.flatnonzero(self.flat(name) != 0)
            if 2 * found.size <= self.flat(name).size:
                self._supports[name] = found
        return found

    def at(self, name: str, positions: NDArray[np.int64]) -> np.ndarray:
        """Return one array's values at flat positions; values at its kept support are looked up once."""
        if positions is not self._supports.get(name):
            found: np.ndarray = self.flat(name)[positions]
            return found
        if name not in self._kept:
            self._kept[name] = self.flat(name)[positions]
            self._kept[name].flags.writeable = False
        return self._kept[name]

    def once(self, key: object, derive: Callable[[], Derived]) -> Derived:
        """Return a value derived from the arrays; the last one is cached, since many payloads name one model."""
        known, derived = self._derived  # one read: another thread may replace both
        if known != key:
            derived = derive()
            self._derived = key, derived
        return cast(Derived, derived)

    def flat(self, name: str) -> np.ndarray:
        """Return one array as 1-D, a complex one in parts, without a copy."""
        return self._flat[name]

    def marked(self) -> dict[str, np.ndarray]:
        """Return the arrays for storage, the names of exact ones marked; :meth:`of_marked` is the way back."""
        return {(_MARK if self.specs[name].exact else "") + name: array for name, array in self.arrays.items()}

    @classmethod
    def of_marked(cls, marked: Mapping[str, np.ndarray]) -> "Reference":
        """Return the reference of arrays of :meth:`marked`."""
        exact = [name.removeprefix(_MARK) for name in marked if name.startswith(_MARK)]
        return cls({name.removeprefix(_MARK): array for name, array in marked.items()}, exact)

    def reshaped(self, specs: Specs) -> "Reference":
        """Return the reference of other names, shapes or dtypes: zeros for an array that is not here, or overflows."""
        if list(self.specs.items()) == list(specs.items()):
            return self
        return Reference({name: self._as(name, spec) for name, spec in specs.items()}, exact_names(specs))

    def _as(self, name: str, spec: ArraySpec) -> np.ndarray:
        own = self.specs.get(name)
        if own is None or own.shape != spec.shape or own.dtype.kind != spec.dtype.kind:
            return np.zeros(spec.shape, spec.dtype)
        with np.errstate(over="ignore"):
            array = self.arrays[name].astype(spec.dtype, copy=False)
        return array if spec.exact or np.isfinite(array).all() else np.zeros(spec.shape, spec.dtype)

    def __repr__(self) -> str:
        return f"Reference(id={self.id[:8]}, arrays={len(self.specs)}, nbytes={self.nbytes})"
