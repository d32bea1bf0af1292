"""Gradients for the device: fp32, fp16, or 4-bit integers at the positions whose activation had a code that is not 0.

    int4:  q_i = round(g_i / step), |q_i| <= 7, for the i whose code was not 0;  0 elsewhere

Both ends know which codes were 0, so no position travels. Where the activation is exactly 0 behind a ReLU its gradient
has no effect; where it is small but not 0, the dropped gradient is an error that buys fewer bytes.
"""

from math import prod

import numpy as np
from numpy.typing import NDArray

from flsparse.codec import steps as quant
from flsparse.codec.coders import integers
from flsparse.codec.errors import require
from flsparse.codec.wire import Reader, Writer, checksum
from flsparse.ranges import one_of

FORMS = ("fp32", "fp16", "int4")
_MAGIC = b"FSG\x01"  # the last byte is the format's version
_BOUND = 7
_HALF_TOP = 14  # an exponent that keeps scaled halves below 65504


def encode_gradient(gradient: np.ndarray, form: str, sent: NDArray[np.bool_]) -> bytes:
    """Code the gradient of one tensor of activations.

    Parameters
    ----------
    gradient : np.ndarray
        Floating, any shape.
    form : {"fp32", "fp16", "int4"}
        fp16 is scaled by a power of two, so that small gradients do not vanish.
    sent : np.ndarray
        Shape (d,), bool: where the code was not 0; used by int4 alone.

    Returns
    -------
    bytes
        Magic and version 4, CRC-32 4, form 1; then values, or exponent + 128 (1) and halves, or a step code (2) and
        integers.

    Raises
    ------
    ValueError
        For an unknown form, or NaN or infinity.
    """
    one_of(FORMS, gradient=form)
    flat = np.ravel(np.asarray(gradient, np.float32))
    if not np.isfinite(flat).all():
        raise ValueError("the gradient at the cut holds NaN or infinity: has the training diverged? lower client.lr")
    out = Writer()
    out.raw(_MAGIC + bytes(4) + bytes([FORMS.index(form)]))
    if form == "fp32":
        out.array(flat)
    elif form == "fp16":
        exponent = _HALF_TOP - int(np.frexp(np.abs(flat).max(initial=0.0))[1])
        exponent = min(max(exponent, -128), 127)
        out.byte(exponent + 128)
        out.array(np.ldexp(flat, exponent).astype(np.float16))
    else:
        x = flat[sent].astype(np.float64)
        code = quant.least_squares_code(x, _BOUND) if x.any() else quant.ONE_CODE
        out.raw(code.to_bytes(2, "little"))
        out.raw(integers.encode_integers(quant.quantize(x, quant.step_of(code), _BOUND)))
    payload = bytearray(out.done())
    payload[4:8] = checksum(payload)
    return bytes(payload)


def decode_gradient(payload: bytes, shape: tuple[int, ...], sent: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Decode a gradient.

    Parameters
    ----------
    payload : bytes
        From anywhere.
    shape : tuple of int
        Of the tensor.
    sent : np.ndarray
        Shape (d,), bool: as in :func:`encode_gradient`.

    Raises
    ------
    PayloadError
        When the payload is damaged, hostile or of another shape.
    """
    require(len(payload) >= 9 and bytes(payload[:4]) == _MAGIC, "this is no coded gradient of this version")
    require(bytes(payload[4:8]) == checksum(payload), "checksum mismatch: the payload was damaged on its way")
    reader = Reader(payload)
    reader.raw(8)
    form = reader.byte()
    require(form < len(FORMS), f"unknown form {form} of a gradient")
    if FORMS[form] == "fp32":
        flat = np.array(reader.array("f4", prod(shape)), np.float32)
    elif FORMS[form] == "fp16":
        exponent = reader.byte() - 128
        halves = np.asarray(reader.array("f2", prod(shape))).astype(np.float32)
        with np.errstate(over="ignore"):
            flat = np.ldexp(halves, -exponent)
    else:
        code = int(reader.array("u2", 1)[0])
        require(1 <= code <= quant.MAX_CODE, f"step code 0x{code:04x} is not a positive finite step")
        q = integers.decode_integers(reader, int(np.count_nonzero(sent)))
        in_range = not q.size or (int(q.min()) >= -_BOUND and int(q.max()) <= _BOUND)  # |-2^15| is no int16
        require(in_range, "a quantized gradient is out of range")
        flat = np.zeros(prod(shape), np.float32)
        flat[sent] = quant.dequantize(q, quant.step_of(code), None, np.dtype(np.float32))
    reader.finish("the gradient")
    require(bool(np.isfinite(flat).all()), "the gradient holds NaN or infinity")
    return flat.reshape(shape)
