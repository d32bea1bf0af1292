/* Integers in groups: coders/grouped.py in one pass. */

#include "kernel.h"

/* Fill the symbols, and the escapes from the front; return how many of these there are. */
static Py_ssize_t split_into(
    unsigned char *symbols, int16_t *escapes, const int16_t *q, Py_ssize_t n, int reach, int width
) {
    const int base = 2 * reach + 2;
    Py_ssize_t escaped = 0;
    for (Py_ssize_t at = 0; at < n; at += width) {
        unsigned symbol = 0;
        for (Py_ssize_t i = at; i < at + width; i++) {
            int value = i < n ? q[i] : 0, digit = (uint16_t)(value + reach);
            if (digit >= base - 1) {
                digit = base - 1;
                escapes[escaped++] = (int16_t)(value > 0 ? value - reach - 1 : value + reach);
            }
            symbol = symbol * (unsigned)base + (unsigned)digit;
        }
        *symbols++ = (unsigned char)symbol;
    }
    return escaped;
}

PyObject *group_split(PyObject *self, PyObject *args) {
    Py_buffer symbols, escapes, q;
    int reach, width;
    Py_ssize_t escaped = -1;
    if (!PyArg_ParseTuple(args, "w*w*y*ii", &symbols, &escapes, &q, &reach, &width))
        return NULL;
    Py_ssize_t n = count_of(&q, 2);
    if (n < 0 || count_of(&escapes, 2) < 0)
        ;
    else if (reach < 0 || reach > 31 || width < 1 || escapes.len != q.len || symbols.len < n / width + (n % width > 0))
        refuse("a group's reach or width, or the room for its symbols, is out of range");
    else
        escaped = split_into(symbols.buf, escapes.buf, q.buf, n, reach, width);
    PyBuffer_Release(&symbols);
    PyBuffer_Release(&escapes);
    PyBuffer_Release(&q);
    return escaped < 0 ? NULL : PyLong_FromSsize_t(escaped);
}
