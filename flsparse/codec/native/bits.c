/* Rice codes: coders/bits.py. */

#include "kernel.h"

enum { RICE = 8 };
enum { BITS_END = -4, RUN_TOO_LONG, TOO_LARGE, BAD_PADDING };

int64_t rice_bits(const int64_t *values, Py_ssize_t n, int *best) {
    int64_t least = INT64_MAX;
    for (int k = 0; k < RICE; k++) {
        int64_t bits = (int64_t)n * (1 + k);
        for (Py_ssize_t i = 0; i < n; i++)
            bits += values[i] >> k;
        if (bits < least) {
            least = bits;
            *best = k;
        }
    }
    return least;
}

void rice_pack(unsigned char *out, const int64_t *values, Py_ssize_t n, int k) {
    uint64_t at = 0; /* the bytes are 0 */
    for (Py_ssize_t i = 0; i < n; i++) {
        for (int64_t ones = values[i] >> k; ones; ones--, at++)
            out[at >> 3] |= 0x80 >> (at & 7);
        at++;
        for (int bit = k - 1; bit >= 0; bit--, at++)
            if (values[i] >> bit & 1)
                out[at >> 3] |= 0x80 >> (at & 7);
    }
}

/* Read what rice_pack wrote, with the checks of coders/bits.py in their order; the bytes that were used, or a fault below 0. */
static Py_ssize_t rice_read(
    int64_t *out, Py_ssize_t count, const unsigned char *data, Py_ssize_t size, int k, int64_t most
) {
    const uint64_t bits = 8 * (uint64_t)size;
    uint64_t at = 0;
    for (Py_ssize_t i = 0; i < count; i++) {
        int64_t value = 0;
        for (;; at++) {
            if (at == bits)
                return BITS_END;
            if (!(data[at >> 3] << (at & 7) & 0x80))
                break;
            if (++value << k > most)
                return RUN_TOO_LONG;
        }
        at++;
        for (int bit = 0; bit < k; bit++, at++) {
            if (at == bits)
                return BITS_END;
            value = value << 1 | (data[at >> 3] >> (7 - (at & 7)) & 1);
        }
        if (value > most)
            return TOO_LARGE;
        out[i] = value;
    }
    if (at & 7 && data[at >> 3] & (0xFF >> (at & 7)))
        return BAD_PADDING;
    return (Py_ssize_t)((at + 7) >> 3);
}

PyObject *rice_unpack(PyObject *self, PyObject *args) {
    Py_buffer out, data;
    int k, most;
    PyObject *used = NULL;
    if (!PyArg_ParseTuple(args, "w*y*ii", &out, &data, &k, &most))
        return NULL;
    Py_ssize_t n = count_of(&out, 8);
    if (n >= 0 && (k < 0 || k >= RICE || most < 0 || most > 1 << 20))
        refuse("a Rice code's parameter or bound is out of range");
    else if (n >= 0)
        used = PyLong_FromSsize_t(rice_read(out.buf, n, data.buf, data.len, k, most));
    PyBuffer_Release(&out);
    PyBuffer_Release(&data);
    return used;
}
