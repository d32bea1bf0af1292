"""Encoder of arrays."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from flsparse.codec.coders.gaps import Positions
from flsparse.codec.models import floats, lossless, quantized, support
from flsparse.codec.models.layout import BOUNDS, Layout, is_sparse, layout_of, words_of, write_forms
from flsparse.codec.specs import Reference, Specs, fingerprint, flatten, in_parts, specs_of
from flsparse.codec.wire import LEAN, REFERENCE_BYTES, VALUES, Envelope, seal
from flsparse.ranges import one_of

Flat = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Codec:
    """Turns arrays into one payload.

    Parameters
    ----------
    values : str
        Precision of floating arrays. ``raw``: all bytes as they are, the dense baseline. ``fp32``: every floating dtype
        bit for bit, coded. ``fp16``: half-precision values, or changes from the reference. ``int8``, ``int4``:
        quantized values, or changes from the reference, with a least-squares step per array. Integers and booleans are
        always lossless. Complex arrays are coded as their real and imaginary parts.
    rounding : str
        ``nearest``, or ``stochastic`` for int8 and int4: unbiased, at more than twice the mean squared error.

    Examples
    --------
    >>> arrays = {"weight": np.zeros((100, 100), np.float32)}
    >>> arrays["weight"][3, 4] = 0.5
    >>> payload = Codec("int8").encode(arrays)
    >>> len(payload) < 60
    True
    """

    values: str = "int8"
    rounding: str = "nearest"

    def __post_init__(self) -> None:
        one_of(VALUES, values=self.values)
        one_of(("nearest", "stochastic"), rounding=self.rounding)

    def encode(
        self,
        arrays: Mapping[str, np.ndarray],
        *,
        reference: Reference | None = None,
        rng: np.random.Generator | None = None,
        exact: Collection[str] = (),
    ) -> bytes:
        """Encode named arrays.

        Parameters
        ----------
        arrays : mapping of str to np.ndarray
            Ordered; floating, complex, integer or boolean, of any shape.
        reference : Reference, optional
            A model of the same names, shapes and dtypes that the receiver holds as well. ``raw`` does not use it.
        rng : np.random.Generator, optional
            Draws the stochastic rounding; needed for that, ignored otherwise.
        exact : collection of str
            Names of the floating and complex arrays that travel bit for bit, NaN and infinity included; those of the
            reference, where there is one.

        Returns
        -------
        bytes
            The payload; equal for equal input on every platform.

        Raises
        ------
        ValueError
            For NaN or infinity in weights, an unknown dtype, values too large for fp16, a reference of other arrays, or
            a missing ``rng``.
        """
        specs = specs_of(arrays, exact)
        mark = fingerprint(specs)
        if reference is not None and reference.fingerprint != mark:
            raise ValueError("the reference has other names, shapes or dtypes than the arrays to encode")
        if self.rounding == "stochastic" and self.values in BOUNDS and rng is None:
            raise ValueError("stochastic rounding needs rng")
        flat, specs = flatten(arrays, specs), in_parts(specs)
        if self.values == "raw":
            return _encode_raw(flat, specs, mark)
        base = None if reference is None else {name: reference.flat(name) for name in specs}
        kept = self._kept(flat, specs)
        layout = layout_of(specs, set(kept))
        _refuse_non_finite(flat, kept, layout)
        chosen = rng if self.rounding == "stochastic" else None
        if self.values in BOUNDS:
            kept, (values, version), dense = _quantize(
                flat, base, kept, layout, specs, quantized.Quantizer(BOUNDS[self.values], chosen)
            )
        else:
            values, dense = _write_floats(flat, base, kept, layout, self.values)
            version = 1
        positions = write_forms(specs, layout)
        if layout.sparse:
            known = None if reference is None else support.Known(reference, layout.sparse)
            at = [kept[name] for name in layout.sparse]
            coded = support.encode(at, [specs[name].size for name in layout.sparse], known)
            version = 2 if coded[0] == support.APART else version
            positions += coded
        sections = {
            "positions": positions,
            "values": values,
            "dense": dense,
            "lossless": lossless.encode_integers(layout, flat, base),
        }
        count = sum(at.size for at in kept.values()) + sum(s.size for n, s in specs.items() if n not in kept)
        version = version if reference is None else LEAN
        reference_id = None if reference is None else reference.id[: 2 * REFERENCE_BYTES]
        return seal(Envelope(self.values, mark if reference is None else None, reference_id, count, sections, version))

    def _kept(self, flat: Flat, specs: Specs) -> dict[str, Positions]:
        """Positions that are not zero, of every array that shall be sparse; under fp32 a negative zero is not zero."""
        kept = {}
        for name, array in flat.items():
            if array.dtype.kind == "f" and not specs[name].exact:
                mask = (words_of(array) if self.values == "fp32" else array) != 0
                if is_sparse(specs[name], int(np.count_nonzero(mask))):
                    kept[name] = np.flatnonzero(mask)
        return kept


def _encode_raw(flat: Flat, specs: Specs, mark: bytes) -> bytes:
    for name, array in flat.items():
        if array.dtype.kind == "f" and not specs[name].exact:
            _check_finite(name, array)
    data = b"".join(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes() for array in flat.values())
    count = sum(spec.size for spec in specs.values())
    return seal(Envelope("raw", mark, None, count, {"positions": b"", "values": b"", "dense": b"", "lossless": data}))


def _check_finite(name: str, values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise ValueError(f"array {name!r} holds NaN or infinity")


def _refuse_non_finite(flat: Flat, kept: Mapping[str, Positions], layout: Layout) -> None:
    for name in layout.sparse:
        _check_finite(name, flat[name][kept[name]])
    for name in layout.dense:
        _check_finite(name, flat[name])


def _quantize(
    flat: Flat,
    base: Flat | None,
    kept: Mapping[str, Positions],
    layout: Layout,
    specs: Specs,
    quantizer: quantized.Quantizer,
) -> tuple[dict[str, Positions], tuple[bytes, int], bytes]:
    """Return the positions worth sending, the values section and its format version, and the dense section."""
    runs, positions = [], {}
    for name in layout.sparse:
        at = kept[name]
        run = quantized.quantize_sparse(flat[name][at], None if base is None else base[name][at], quantizer)
        worth = (run.q != 0) | run.inside  # values that decode to 0, outside the reference's support, are dropped
        if not worth.all():
            run, at = run.select(worth), at[worth]
        runs.append(run)
        positions[name] = at
    dense = [quantized.DenseRun(specs[n], None if base is None else base[n]) for n in layout.dense]
    section = quantized.write_dense([flat[name] for name in layout.dense], dense, quantizer)
    shapes = [specs[name].shape for name in positions]
    return (
        positions,
        quantized.write_sparse(runs, list(positions.values()), shapes, quantizer.bound, alone=base is None),
        section,
    )


def _write_floats(
    flat: Flat, base: Flat | None, kept: Mapping[str, Positions], layout: Layout, values: str
) -> tuple[bytes, bytes]:
    """Return the values section and the dense section under fp32 and fp16."""
    some = [flat[name][kept[name]] for name in layout.sparse]
    bases = None if base is None else [base[name][kept[name]] for name in layout.sparse]
    sparse = floats.write(layout.sparse, some, bases, values)
    whole = None if base is None else [base[name] for name in layout.dense]
    return sparse, floats.write(layout.dense, [flat[name] for name in layout.dense], whole, values)
