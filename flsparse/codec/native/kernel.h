/* The codec's inner loops, compiled: the same bits as the NumPy code of coders/rans.py, coders/tables.py and steps.py.

   Integers, and doubles whose every operation IEEE 754 fixes, in the order that is written here: no contraction, no
   reassociation. Buffers are checked on entry, what a stream says is checked where it is used: whatever they hold,
   nothing outside them is read or written. */

#ifndef FLSPARSE_KERNEL_H
#define FLSPARSE_KERNEL_H

#define Py_LIMITED_API 0x030B0000 /* one build for Python 3.11 and all later ones */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <float.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if FLT_EVAL_METHOD != 0
#error "this processor computes doubles with more bits than they are stored with: NumPy's results would not be met"
#endif

#define KERNEL_VERSION 4 /* of what flsparse/codec/kernel.py expects: one more with every change of a function */

enum { BITS = 14, TOTAL = 1 << BITS, LOW = 1 << 16 };

PyObject *refuse(const char *why);                          /* raise ValueError */
Py_ssize_t count_of(const Py_buffer *buffer, size_t size); /* elements of a buffer, or -1 and a ValueError */
int are_tables(const int64_t *frequencies, Py_ssize_t count, Py_ssize_t alphabet);

typedef struct {
    uint16_t frequency_less_1, offset, symbol; /* a frequency may be 2^14; the offset is slot - c */
} Step;

enum { DONE, BAD_STATE, ENDS_EARLY, ENDS_ELSEWHERE, BAD_TABLE }; /* in the order of coders/rans.py */

void fill_steps(Step *steps, const int64_t *frequencies, Py_ssize_t entries, Py_ssize_t alphabet);

int64_t rice_bits(const int64_t *values, Py_ssize_t n, int *best); /* with the best parameter */
void rice_pack(unsigned char *out, const int64_t *values, Py_ssize_t n, int k);

PyObject *rans_encode(PyObject *self, PyObject *args);
PyObject *rans_decode(PyObject *self, PyObject *args);
PyObject *rank_one_classes(PyObject *self, PyObject *args);
PyObject *rank_one_decode(PyObject *self, PyObject *args);
PyObject *choose(PyObject *self, PyObject *args);
PyObject *rice_unpack(PyObject *self, PyObject *args);
PyObject *parametric(PyObject *self, PyObject *args);
PyObject *geometric(PyObject *self, PyObject *args);
PyObject *entropy(PyObject *self, PyObject *args);
PyObject *least_squares(PyObject *self, PyObject *args);
PyObject *group_split(PyObject *self, PyObject *args);

#endif
