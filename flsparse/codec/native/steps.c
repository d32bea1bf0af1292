/* The step of the least squared error: steps.py, a step at a time. */

#include "kernel.h"

enum { STEP_SHIFT = 49, TRIED = 28, FEW = 512, MAX_STEP_CODE = 0x3FF7 };

static double step_of(int code) {
    uint64_t bits = (uint64_t)code << STEP_SHIFT;
    double step;
    memcpy(&step, &bits, sizeof step);
    return step;
}

/* See portable.totals: the sum is written down, and x is not what it was. */
static double total(double *x, Py_ssize_t n) {
    while (n > FEW) {
        Py_ssize_t half = n / 2;
        for (Py_ssize_t i = 0; i < half; i++)
            x[i] += x[half + i];
        if (n % 2)
            x[half] = x[2 * half];
        n = half + n % 2;
    }
    double sum = n ? x[0] : 0.0;
    for (Py_ssize_t i = 1; i < n; i++)
        sum += x[i];
    return sum;
}

static double error_of(
    double *errors, const double *sample, const double *shares, Py_ssize_t n, double step, double bound
) {
    const double round = 6755399441055744.0; /* 1.5 x 2^52: a sum with it is rounded to an integer, ties to even */
    for (Py_ssize_t i = 0; i < n; i++) {
        double q = sample[i] / step;
        q = q < -bound ? -bound : q;
        q = q > bound ? bound : q;
        double miss = (q + round - round) * step - sample[i];
        errors[i] = miss * miss * shares[i];
    }
    return total(errors, n);
}

static int least_code(
    double *errors, const double *sample, const double *shares, Py_ssize_t n, int widest, double bound
) {
    double least = Py_HUGE_VAL;
    int best = widest;
    for (int code = widest; code > 0 && code > widest - TRIED; code--) {
        double error = error_of(errors, sample, shares, n, step_of(code), bound);
        if (error < least) {
            least = error;
            best = code;
        } else if (error > 2 * least)
            break;
    }
    return best;
}

PyObject *least_squares(PyObject *self, PyObject *args) {
    Py_buffer sample, shares;
    int widest, bound, code = -1;
    if (!PyArg_ParseTuple(args, "y*y*ii", &sample, &shares, &widest, &bound))
        return NULL;
    Py_ssize_t n = count_of(&sample, 8);
    if (n < 0 || count_of(&shares, 8) < 0)
        ;
    else if (shares.len != sample.len || widest < 1 || widest > MAX_STEP_CODE || bound < 1 || bound > INT16_MAX)
        refuse("a sample, its shares, a step code or a bound is out of range");
    else {
        double *errors = malloc(sizeof *errors * (size_t)(n ? n : 1));
        if (errors) {
            Py_BEGIN_ALLOW_THREADS
            code = least_code(errors, sample.buf, shares.buf, n, widest, bound);
            Py_END_ALLOW_THREADS
        } else
            PyErr_NoMemory();
        free(errors);
    }
    PyBuffer_Release(&sample);
    PyBuffer_Release(&shares);
    return code < 0 ? NULL : PyLong_FromLong(code);
}
