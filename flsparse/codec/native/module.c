/* The extension module flsparse.codec._kernel, and the checks that its functions share. */

#include "kernel.h"

PyObject *refuse(const char *why) {
    PyErr_SetString(PyExc_ValueError, why);
    return NULL;
}

Py_ssize_t count_of(const Py_buffer *buffer, size_t size) {
    if (buffer->len % (Py_ssize_t)size || (uintptr_t)buffer->buf % size) {
        refuse("a buffer does not hold elements of the size that the kernel takes");
        return -1;
    }
    return buffer->len / (Py_ssize_t)size;
}

/* Whether these are rows of frequencies, each summing to TOTAL. */
int are_tables(const int64_t *frequencies, Py_ssize_t count, Py_ssize_t alphabet) {
    if (alphabet < 1 || alphabet > LOW || count < alphabet || count % alphabet)
        return 0;
    for (Py_ssize_t row = 0; row < count; row += alphabet) {
        int64_t sum = 0;
        for (Py_ssize_t i = row; i < row + alphabet; i++) {
            if (frequencies[i] < 0 || frequencies[i] > TOTAL)
                return 0;
            sum += frequencies[i];
        }
        if (sum != TOTAL)
            return 0;
    }
    return 1;
}

static PyMethodDef METHODS[] = {
    {"rans_encode", rans_encode, METH_VARARGS, NULL},
    {"rans_decode", rans_decode, METH_VARARGS, NULL},
    {"rank_one_classes", rank_one_classes, METH_VARARGS, NULL},
    {"rank_one_decode", rank_one_decode, METH_VARARGS, NULL},
    {"choose", choose, METH_VARARGS, NULL},
    {"rice_unpack", rice_unpack, METH_VARARGS, NULL},
    {"parametric", parametric, METH_VARARGS, NULL},
    {"geometric", geometric, METH_VARARGS, NULL},
    {"entropy", entropy, METH_VARARGS, NULL},
    {"least_squares", least_squares, METH_VARARGS, NULL},
    {"group_split", group_split, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static int start(PyObject *module) { return PyModule_AddIntConstant(module, "VERSION", KERNEL_VERSION); }

static PyModuleDef_Slot SLOTS[] = {{Py_mod_exec, (void *)start}, {0, NULL}};

static struct PyModuleDef MODULE = {
    PyModuleDef_HEAD_INIT, "_kernel", "The codec's inner loops.", 0, METHODS, SLOTS, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__kernel(void) { return PyModuleDef_Init(&MODULE); }
