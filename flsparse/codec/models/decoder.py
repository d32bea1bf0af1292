"""Decoder of payloads. It takes untrusted bytes, through the bounded reader of :mod:`flsparse.codec.wire`."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from flsparse.codec.coders.gaps import Positions
from flsparse.codec.errors import PayloadError, require
from flsparse.codec.models import floats, lossless, quantized, support
from flsparse.codec.models.layout import BOUNDS, Layout, read_forms
from flsparse.codec.models.support import Kept
from flsparse.codec.specs import ArraySpec, Reference, Specs, fingerprint, in_parts, specs_of
from flsparse.codec.wire import REFERENCE_BYTES, Envelope, Reader, unseal


@dataclass(frozen=True)
class Layer:
    """One decoded array, sparse where that is smaller.

    Parameters
    ----------
    name : str
        Of the array.
    positions : np.ndarray or None
        Shape (k,), int64, flat indices, strictly increasing; every other element is zero. None: all positions.
    values : np.ndarray
        Shape (k,) or (size,), in the array's dtype: decoded weights, not changes.
    within : tuple of (np.ndarray, np.ndarray) or None
        See :class:`flsparse.codec.models.support.Kept`: sums over many nodes are taken over the reference's support.
    """

    name: str
    positions: Positions | None
    values: np.ndarray
    within: tuple[Positions, Positions] | None = None

    def dense(self, spec: ArraySpec) -> np.ndarray:
        """Return the array in full, in its shape; it may share memory with ``values``."""
        if self.positions is None:
            return self.values.reshape(spec.shape)
        out = np.zeros(spec.size, spec.dtype)
        out[self.positions] = self.values
        return out.reshape(spec.shape)


def decode(
    payload: bytes, *, like: Mapping[str, np.ndarray | ArraySpec], reference: Reference | None = None
) -> dict[str, np.ndarray]:
    """Decode a payload to dense arrays.

    Parameters
    ----------
    payload : bytes
        From anywhere.
    like : mapping of str to np.ndarray or ArraySpec
        The names, shapes, dtypes and exactness that the payload must have been made for, in order.
    reference : Reference, optional
        The model that the payload names, when it names one.

    Returns
    -------
    dict of str to np.ndarray
        Writable arrays, ordered as ``like``.

    Raises
    ------
    PayloadError
        For any fault of the payload; nothing is decoded then.
    """
    specs = specs_of(like)
    layers = _decode(payload, specs, reference)
    arrays = {layer.name: layer.dense(specs[layer.name]) for layer in layers}
    return {name: array if array.flags.writeable else array.copy() for name, array in arrays.items()}


def decode_layers(
    payload: bytes, *, like: Mapping[str, np.ndarray | ArraySpec], reference: Reference | None = None
) -> list[Layer]:
    """Decode a payload to layers, sparse ones as positions and values, for sums over many nodes.

    Takes and raises the same as :func:`decode`; all layers or none. An array kept by more than half comes back in full.
    """
    return _decode(payload, specs_of(like), reference)


def _decode(payload: bytes, specs: Specs, reference: Reference | None) -> list[Layer]:
    envelope = unseal(payload)
    mark = fingerprint(specs)
    require(envelope.fingerprint in (None, mark), "the payload was made for other names, shapes or dtypes")
    base = _base(envelope, reference, mark)
    whole, specs = specs, in_parts(specs)
    if envelope.values == "raw":
        return [_whole(layer, whole[layer.name]) for layer in _decode_raw(envelope, specs)]
    reader = Reader(envelope.sections["positions"])
    layout = read_forms(reader, specs)
    known = None if base is None else support.Known(base, layout.sparse)
    at = (
        support.decode(reader, [specs[name].size for name in layout.sparse], known, envelope.version)
        if layout.sparse
        else []
    )
    reader.finish("the positions section")
    kept = dict(zip(layout.sparse, at, strict=True))
    count = sum(own.positions.size for own in kept.values()) + sum(s.size for n, s in specs.items() if n not in kept)
    require(envelope.nnz == count, f"the header counts {envelope.nnz} values, the sections {count}")
    flat = _sparse_values(envelope, specs, layout, kept, base)
    flat |= _dense_values(envelope, specs, layout, base)
    reader = Reader(envelope.sections["lossless"])
    bases = None if base is None else {name: base.flat(name) for names in layout.lossless for name in names}
    flat |= lossless.decode_integers(reader, layout, specs, bases)
    reader.finish("the lossless section")
    return [_whole(_layer(name, spec, kept.get(name), flat), whole[name]) for name, spec in specs.items()]


def _whole(layer: Layer, spec: ArraySpec) -> Layer:
    """Put the parts of a complex array together; other layers stay."""
    if spec.dtype.kind != "c":
        return layer
    parts = layer.dense(ArraySpec((2 * spec.size,), layer.values.dtype))
    return Layer(layer.name, None, parts.view(spec.dtype))


def _base(envelope: Envelope, reference: Reference | None, mark: bytes) -> Reference | None:
    """Return the reference when the payload needs it and it is the right one."""
    if envelope.reference_id is None:
        return None
    if reference is None:
        raise PayloadError(f"the payload needs reference {envelope.reference_id}, none was given")
    mine = reference.id[: 2 * REFERENCE_BYTES]
    require(mine == envelope.reference_id, f"the payload needs reference {envelope.reference_id}, not {mine}")
    require(reference.fingerprint == mark, "the reference has other names, shapes or dtypes")
    return reference


def _decode_raw(envelope: Envelope, specs: Specs) -> list[Layer]:
    require(envelope.reference_id is None, "a raw payload names a reference")
    for name in ("positions", "values", "dense"):
        require(len(envelope.sections[name]) == 0, f"a raw payload has a {name} section")
    require(envelope.nnz == sum(spec.size for spec in specs.values()), "the header counts another number of values")
    reader = Reader(envelope.sections["lossless"])
    layers = []
    for name, spec in specs.items():
        if spec.dtype == np.bool_:
            data = reader.array("u1", spec.size)
            require(not data.size or int(data.max()) <= 1, f"array {name!r} holds a boolean that is neither 0 nor 1")
            values = np.asarray(data).view(np.bool_)
        else:
            values = np.asarray(reader.array(spec.dtype.str, spec.size)).astype(spec.dtype, copy=False)
        if spec.dtype.kind == "f" and not spec.exact:
            require(bool(np.isfinite(values).all()), f"array {name!r} holds NaN or infinity")
        layers.append(Layer(name, None, values))
    reader.finish("a raw payload")
    return layers


def _sparse_values(
    envelope: Envelope, specs: Specs, layout: Layout, kept: Mapping[str, Kept], base: Reference | None
) -> dict[str, np.ndarray]:
    names = layout.sparse
    reader = Reader(envelope.sections["values"])
    at, own = [kept[name].positions for name in names], [specs[name] for name in names]
    bases = None if base is None else [_base_at(base, name, kept[name]) for name in names]
    if envelope.values in BOUNDS:
        arrays = quantized.read_sparse(reader, at, bases, own, BOUNDS[envelope.values], envelope.version)
    else:
        dtypes = [spec.dtype for spec in own]
        arrays = floats.read(reader, [each.size for each in at], dtypes, bases, envelope.values)
    reader.finish("the values section")
    return dict(zip(names, arrays, strict=True))


def _base_at(base: Reference, name: str, kept: Kept) -> np.ndarray:
    """Return the reference's values at kept positions; within its support they lie close together."""
    if kept.within is None:
        return base.at(name, kept.positions)
    support, places = kept.within
    return base.at(name, support).take(places)


def _dense_values(envelope: Envelope, specs: Specs, layout: Layout, base: Reference | None) -> dict[str, np.ndarray]:
    names = layout.dense
    reader = Reader(envelope.sections["dense"])
    own = [specs[name] for name in names]
    bases = None if base is None else [base.flat(name) for name in names]
    if envelope.values in BOUNDS:
        runs = [quantized.DenseRun(spec, None if bases is None else bases[i]) for i, spec in enumerate(own)]
        arrays = quantized.read_dense(reader, runs, BOUNDS[envelope.values], envelope.version)
    else:
        arrays = floats.read(reader, [s.size for s in own], [s.dtype for s in own], bases, envelope.values)
    reader.finish("the dense section")
    return dict(zip(names, arrays, strict=True))


def _layer(name: str, spec: ArraySpec, kept: Kept | None, flat: Mapping[str, np.ndarray]) -> Layer:
    if name not in flat:
        return Layer(name, None, np.empty(0, spec.dtype))
    if kept is None:
        return Layer(name, None, flat[name])
    layer = Layer(name, kept.positions, flat[name], kept.within)
    if 2 * kept.positions.size > spec.size:
        return Layer(name, None, layer.dense(spec).reshape(-1))
    return layer
