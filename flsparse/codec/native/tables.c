/* Frequency tables: coders/tables.py, without the matrices. */

#include "kernel.h"

enum { EXPLICIT, LAPLACE, GAUSS, GIVEN };
enum { FRACTION = 16, INDEX = 14, MOST_SUB = 4 };

/* -- logarithms, see portable.py; all callers hold the GIL while the table is made ---------------------------------- */

static int32_t LOGS[1 << (INDEX - 1)];

static void make_logs(void) {
    static int made = 0;
    if (made)
        return;
    for (uint64_t i = 0; i < 1 << (INDEX - 1); i++) {
        uint64_t x = (i << (31 - (INDEX - 1))) + (1ull << 31);
        int32_t log = 0;
        for (int bit = 0; bit < FRACTION; bit++) {
            x = x * x >> 31;
            uint64_t digit = x >> 32;
            log = log << 1 | (int32_t)digit;
            x >>= digit;
        }
        LOGS[i] = log;
    }
    made = 1;
}

/* log2 of 1 .. 2^53, in units of 2^-FRACTION. */
static int64_t log_of(int64_t n) {
    int length = 0;
    for (int step = 32; step; step >>= 1)
        if (n >> length >> step)
            length += step; /* the length of n, less 1 */
    int64_t index = length >= INDEX - 1 ? n >> (length - (INDEX - 1)) : n << (INDEX - 1 - length);
    return LOGS[index - (1 << (INDEX - 1))] + ((int64_t)length << FRACTION);
}

static double bits_of(int64_t units) { return (double)units / (1 << FRACTION); }

static int64_t sum_of(const int64_t *x, Py_ssize_t n) {
    int64_t sum = 0;
    for (Py_ssize_t i = 0; i < n; i++)
        sum += x[i];
    return sum;
}

static int64_t entropy_of(const int64_t *counts, Py_ssize_t n) {
    int64_t sum = sum_of(counts, n), units = 0;
    if (!sum)
        return 0;
    int64_t whole = log_of(sum);
    for (Py_ssize_t i = 0; i < n; i++)
        if (counts[i] > 0)
            units += counts[i] * (whole - log_of(counts[i]));
    return units;
}

/* The cost of a message, or -1 where a symbol of it has no frequency. */
static int64_t cost_of(const int64_t *counts, const int64_t *frequencies, Py_ssize_t n) {
    int64_t units = 0;
    for (Py_ssize_t i = 0; i < n; i++) {
        if (counts[i] > 0 && !frequencies[i])
            return -1;
        if (counts[i] > 0)
            units += counts[i] * (((int64_t)BITS << FRACTION) - log_of(frequencies[i]));
    }
    return units;
}

/* -- tables: each function needs an alphabet of at most TOTAL, so that every weight finds a frequency ---------------- */

static void normalize(int64_t *weights, Py_ssize_t n) {
    int64_t sum = sum_of(weights, n), missing = TOTAL;
    for (Py_ssize_t i = 0; i < n; i++) {
        if (weights[i] > 0) {
            int64_t share = weights[i] * TOTAL / sum;
            weights[i] = share ? share : 1;
        }
        missing -= weights[i];
    }
    while (missing) {
        Py_ssize_t top = 0;
        for (Py_ssize_t i = 1; i < n; i++)
            if (weights[i] > weights[top])
                top = i;
        int64_t most = -(weights[top] / 2), change = missing > most ? missing : most;
        weights[top] += change;
        missing -= change;
    }
}

static void fill_parametric(int64_t *out, int kind, int parameter, Py_ssize_t bound) {
    double theta = (parameter + 0.5) / 256.0, square = theta * theta, ratio = theta, weight = 1.0;
    for (Py_ssize_t i = 0; i <= bound; i++) {
        if (i) {
            if (kind == GAUSS && i > 1)
                ratio *= square;
            weight *= ratio;
        }
        out[bound - i] = out[bound + i] = (int64_t)(weight * (1 << 30)) + (1 << 14);
    }
    normalize(out, 2 * bound + 1);
}

/* The parameter of the least cost, coarse to fine; the first that was looked at of equal ones. */
static int best_parameter(int kind, const int64_t *counts, Py_ssize_t n, int64_t *scratch, int64_t *cost) {
    int64_t seen[256];
    int center = 128, best = 0;
    for (int i = 0; i < 256; i++)
        seen[i] = -1;
    for (int reach = 64; reach; reach /= 2) {
        for (int side = -1; side <= 1; side++) {
            int parameter = center + side * reach;
            if (seen[parameter] >= 0)
                continue;
            fill_parametric(scratch, kind, parameter, n / 2);
            seen[parameter] = cost_of(counts, scratch, n);
            if (!best || seen[parameter] < seen[best])
                best = parameter;
        }
        center = best;
    }
    *cost = seen[best];
    return best;
}

static int varint(unsigned char *out, uint64_t value) {
    int length = 0;
    for (; value > 0x7F; value >>= 7)
        out[length++] = (unsigned char)(value | 0x80);
    out[length++] = (unsigned char)value;
    return length;
}

/* The level of a scaled count: 2^sub an octave. Rounding by a sum is exact for such small numbers. */
static int64_t level_of(int64_t count, double scale, int sub) {
    const double round = 6755399441055744.0; /* 1.5 x 2^52 */
    double scaled = (double)count * scale;
    if (!(scaled > 1.0))
        scaled = 1.0;
    uint64_t bits;
    memcpy(&bits, &scaled, sizeof bits);
    int64_t exponent = (int64_t)(bits >> 52) - 1023;
    bits = (bits & ((1ull << 52) - 1)) | 1023ull << 52;
    memcpy(&scaled, &bits, sizeof bits); /* in [1, 2) */
    return 1 + (exponent << sub) + (int64_t)((scaled - 1.0) * (1 << sub) + round - round);
}

/* Folded differences of levels, and the frequencies that the levels stand for. */
static void fill_explicit(int64_t *folded, int64_t *frequencies, const int64_t *counts, Py_ssize_t n, int sub) {
    int64_t sum = sum_of(counts, n), before = 0;
    double scale = (double)TOTAL / (double)(sum > 1 ? sum : 1);
    for (Py_ssize_t i = 0; i < n; i++) {
        int64_t level = counts[i] > 0 ? level_of(counts[i], scale, sub) : 0, step = level - before;
        folded[i] = step < 0 ? -2 * step - 1 : 2 * step;
        before = level;
        level -= level > 0;
        frequencies[i] = before ? ((1 << sub) + (level & ((1 << sub) - 1))) << (level >> sub) : 0;
    }
    normalize(frequencies, n);
}

/* The best table of levels as (spec, bits), None where all of them are above the limit, NULL and an exception; scratch
   has room for 4 alphabets. */
static PyObject *best_explicit(int64_t *out, const int64_t *counts, Py_ssize_t n, double limit, int64_t *scratch) {
    Py_ssize_t low = 0, high = n - 1;
    while (!counts[low])
        low++;
    while (!counts[high])
        high--;
    const int64_t *own = counts + low;
    Py_ssize_t size = high - low + 1;
    unsigned char head[20];
    int length = 1 + varint(head + 1, (uint64_t)low);
    length += varint(head + length, (uint64_t)(high - low));
    double least = bits_of(entropy_of(counts, n)) - (double)sum_of(counts, n) / 1000.0;
    if ((double)(8 * length + size) + least > limit)
        Py_RETURN_NONE;
    double best = 0.0;
    int64_t *folded = scratch, *frequencies = scratch + n, rice = 0;
    int best_k = 0, best_sub = 0;
    for (int sub = 1; sub <= MOST_SUB; sub++) {
        int k = 0;
        fill_explicit(folded, frequencies, own, size, sub);
        int64_t bytes = (rice_bits(folded, size, &k) + 7) / 8;
        double bits = (double)(8 * (length + bytes)) + bits_of(cost_of(own, frequencies, size));
        if (!best_sub || bits < best) {
            best = bits;
            best_sub = sub;
            best_k = k;
            rice = bytes;
            memcpy(scratch + 2 * n, folded, 8 * (size_t)size);
            memcpy(scratch + 3 * n, frequencies, 8 * (size_t)size);
        }
    }
    if (best > limit)
        Py_RETURN_NONE;
    memset(out, 0, 8 * (size_t)n);
    memcpy(out + low, scratch + 3 * n, 8 * (size_t)size);
    PyObject *spec = PyBytes_FromStringAndSize(NULL, length + (Py_ssize_t)rice);
    if (!spec)
        return NULL;
    unsigned char *bytes = (unsigned char *)PyBytes_AsString(spec);
    head[0] = (unsigned char)(EXPLICIT | (best_sub - 1) << 2 | best_k << 4);
    memcpy(bytes, head, (size_t)length);
    memset(bytes + length, 0, (size_t)rice);
    rice_pack(bytes + length, scratch + 2 * n, size, best_k);
    return Py_BuildValue("Nd", spec, best);
}

/* See tables.choose: (spec, bits), the frequencies in out. */
static PyObject *choice(
    int64_t *out, const int64_t *counts, const int64_t *given, Py_ssize_t n, int is_signed, int64_t *scratch
) {
    double least = Py_HUGE_VAL, bits;
    int kind = EXPLICIT, parameter = 0;
    int64_t cost;
    for (int family = LAPLACE; is_signed && family <= GAUSS; family++) {
        int best = best_parameter(family, counts, n, scratch, &cost);
        bits = 16 + bits_of(cost);
        if (bits < least) {
            least = bits;
            kind = family;
            parameter = best;
        }
    }
    if (given) {
        cost = cost_of(counts, given, n);
        bits = cost < 0 ? Py_HUGE_VAL : 8 + bits_of(cost);
        if (bits < least) {
            least = bits;
            kind = GIVEN;
        }
    }
    PyObject *chosen = best_explicit(out, counts, n, least, scratch);
    if (chosen != Py_None)
        return chosen;
    Py_DECREF(chosen);
    if (kind == GIVEN)
        memcpy(out, given, 8 * (size_t)n);
    else
        fill_parametric(out, kind, parameter, n / 2);
    char spec[2] = {(char)kind, (char)parameter};
    return Py_BuildValue("y#d", spec, (Py_ssize_t)(kind == GIVEN ? 1 : 2), least);
}

/* Counts of 0 or more, of so few symbols that no sum of costs leaves 64 bits. */
static int are_counts(const int64_t *counts, Py_ssize_t n) {
    const int64_t most = (int64_t)1 << 40;
    int64_t sum = 0;
    for (Py_ssize_t i = 0; i < n; i++) {
        if (counts[i] < 0 || counts[i] > most || (sum += counts[i]) > most)
            return 0;
    }
    return 1;
}

PyObject *choose(PyObject *self, PyObject *args) {
    Py_buffer out, counts, given;
    int is_signed;
    PyObject *chosen = NULL;
    if (!PyArg_ParseTuple(args, "w*y*z*p", &out, &counts, &given, &is_signed))
        return NULL;
    Py_ssize_t n = count_of(&counts, 8);
    if (n < 0 || count_of(&out, 8) < 0 || (given.buf && count_of(&given, 8) < 0))
        ;
    else if (out.len != counts.len || (given.buf && given.len != counts.len) || n > TOTAL || !are_counts(counts.buf, n) ||
             !sum_of(counts.buf, n) || (is_signed && n % 2 == 0) || (given.buf && !are_tables(given.buf, n, n)))
        refuse("counts or frequencies are out of range");
    else {
        int64_t *scratch = malloc(32 * (size_t)n);
        make_logs();
        chosen = scratch ? choice(out.buf, counts.buf, given.buf, n, is_signed, scratch) : PyErr_NoMemory();
        free(scratch);
    }
    PyBuffer_Release(&out);
    PyBuffer_Release(&counts);
    if (given.buf)
        PyBuffer_Release(&given);
    return chosen;
}

PyObject *entropy(PyObject *self, PyObject *args) {
    Py_buffer counts;
    PyObject *bits = NULL;
    if (!PyArg_ParseTuple(args, "y*", &counts))
        return NULL;
    Py_ssize_t n = count_of(&counts, 8);
    make_logs();
    if (n >= 0 && !are_counts(counts.buf, n))
        refuse("counts are out of range");
    else if (n >= 0)
        bits = PyFloat_FromDouble(bits_of(entropy_of(counts.buf, n)));
    PyBuffer_Release(&counts);
    return bits;
}

PyObject *parametric(PyObject *self, PyObject *args) {
    Py_buffer out;
    int kind, parameter, right = 0;
    if (!PyArg_ParseTuple(args, "w*ii", &out, &kind, &parameter))
        return NULL;
    Py_ssize_t n = count_of(&out, 8);
    if (n >= 0 && (n > TOTAL || n % 2 == 0 || parameter < 0 || parameter > 255))
        refuse("a distribution's alphabet or parameter is out of range");
    else if (n >= 0) {
        fill_parametric(out.buf, kind, parameter, n / 2);
        right = 1;
    }
    PyBuffer_Release(&out);
    return right ? Py_NewRef(Py_None) : NULL;
}

/* base^exponent, see portable.power */
static double power(double base, int64_t exponent) {
    double value = 1.0;
    for (; exponent > 0; exponent >>= 1, base *= base)
        if (exponent & 1)
            value *= base;
    return value;
}

PyObject *geometric(PyObject *self, PyObject *args) {
    Py_buffer out, edges;
    double q;
    int right = 0;
    if (!PyArg_ParseTuple(args, "w*y*d", &out, &edges, &q))
        return NULL;
    Py_ssize_t n = count_of(&out, 8), all = count_of(&edges, 8);
    if (n >= 0 && all >= 0 && (n < 1 || n > TOTAL || all != n + 1 || !(q >= 0.0 && q < 1.0)))
        refuse("a geometric distribution's alphabet or parameter is out of range");
    else if (n >= 0 && all >= 0) {
        const int64_t *edge = edges.buf;
        int64_t *weights = out.buf;
        double before = power(q, edge[0]);
        for (Py_ssize_t i = 0; i < n; i++) {
            double after = power(q, edge[i + 1]), mass = before - after;
            weights[i] = (int64_t)((mass > 0.0 ? mass : 0.0) * 1099511627776.0) + (1 << 24);
            before = after;
        }
        normalize(weights, n);
        right = 1;
    }
    PyBuffer_Release(&out);
    PyBuffer_Release(&edges);
    return right ? Py_NewRef(Py_None) : NULL;
}
