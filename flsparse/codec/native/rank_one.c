/* Integers in the contexts of their rows and columns: coders/rank_one.py, value after value. */

#include "kernel.h"

#include <math.h>

enum { CLASSES = 12, FIRST = 3, SIGN_CLASSES = 4 };
enum { MATRIX, ROW, COLUMN, SIDES };

typedef struct {
    int64_t sum, count; /* of magnitudes; of the signs of those that are not 0, for a row */
} Before;

/* The matrix, row and column of each value, and what came before in each; NULL where one is out of range. */
typedef struct {
    const int32_t *ids;
    Py_ssize_t n;
    Before *sizes, *signs;
} Places;

static int take_places(Places *at, const Py_buffer *ids, Py_ssize_t n, Py_ssize_t contexts) {
    Py_ssize_t count = count_of(ids, 4);
    *at = (Places){ids->buf, n, NULL, NULL};
    if (count < 0)
        return 0;
    int in_range = count == SIDES * n && contexts > 0 && contexts <= LOW;
    for (Py_ssize_t i = 0; in_range && i < count; i++)
        in_range = at->ids[i] >= 0 && at->ids[i] < contexts;
    if (!in_range) {
        refuse("a value's matrix, row or column is out of range");
        return 0;
    }
    at->sizes = calloc((size_t)contexts, sizeof *at->sizes);
    at->signs = calloc((size_t)contexts, sizeof *at->signs);
    if (at->sizes && at->signs)
        return 1;
    PyErr_NoMemory();
    return 0;
}

static void leave_places(Places *at) {
    free(at->sizes);
    free(at->signs);
}

static int size_class(const Places *at, Py_ssize_t i) {
    const Before m = at->sizes[at->ids[i]], r = at->sizes[at->ids[at->n + i]], c = at->sizes[at->ids[2 * at->n + i]];
    double mean = ((double)m.sum + 1.0) / ((double)m.count + 2.0);
    double x = ((double)r.sum + 2.0 * mean) * ((double)c.sum + 4.0 * mean);
    double y = ((double)r.count + 2.0) * ((double)c.count + 4.0) * mean;
    int exponent;
    frexp(x / y, &exponent);
    exponent += FIRST;
    return exponent < 0 ? 0 : exponent < CLASSES ? exponent : CLASSES - 1;
}

static void add_size(Places *at, Py_ssize_t i, int64_t size) {
    for (int side = MATRIX; side < SIDES; side++) {
        Before *own = &at->sizes[at->ids[side * at->n + i]];
        own->sum += size;
        own->count++;
    }
}

/* The class of a sign, less 1. */
static int sign_class(const Before *row) {
    static const int steps[SIGN_CLASSES - 1] = {2, 5, 9};
    int64_t sum = row->sum < 0 ? -row->sum : row->sum;
    int class = 0;
    for (int i = 0; i < SIGN_CLASSES - 1; i++)
        class += 16 * sum >= steps[i] * (row->count + 2);
    return class;
}

static void add_sign(Before *row, int sign) {
    row->sum += sign;
    row->count++;
}

static void fill_classes(uint8_t *sizes, int8_t *signs, const int16_t *q, Places *at) {
    for (Py_ssize_t i = 0; i < at->n; i++) {
        sizes[i] = (uint8_t)size_class(at, i);
        add_size(at, i, q[i] < 0 ? -q[i] : q[i]);
        Before *row = &at->signs[at->ids[at->n + i]];
        int class = sign_class(row) + 1;
        signs[i] = (int8_t)(row->sum < 0 ? -class : class);
        if (q[i])
            add_sign(row, q[i] < 0 ? -1 : 1);
    }
}

PyObject *rank_one_classes(PyObject *self, PyObject *args) {
    Py_buffer sizes, signs, q, ids;
    Py_ssize_t contexts;
    Places at;
    PyObject *done = NULL;
    if (!PyArg_ParseTuple(args, "w*w*y*y*n", &sizes, &signs, &q, &ids, &contexts))
        return NULL;
    Py_ssize_t n = count_of(&q, 2);
    if (n < 0)
        ;
    else if (sizes.len != n || signs.len != n)
        refuse("the room for the classes of values is out of range");
    else {
        if (take_places(&at, &ids, n, contexts)) {
            fill_classes(sizes.buf, signs.buf, q.buf, &at);
            done = Py_None;
            Py_INCREF(done);
        }
        leave_places(&at);
    }
    PyBuffer_Release(&sizes);
    PyBuffer_Release(&signs);
    PyBuffer_Release(&q);
    PyBuffer_Release(&ids);
    return done;
}

typedef struct {
    const Step *steps;
    uint32_t x;
    const unsigned char *words, *end;
} Lane;

/* The next symbol, or -1 where the stream ends early. */
static int next_symbol(Lane *lane, int table) {
    Step step = lane->steps[(size_t)table << BITS | (lane->x & (TOTAL - 1))];
    uint32_t x = (step.frequency_less_1 + 1u) * (lane->x >> BITS) + step.offset;
    if (x < LOW) {
        if (lane->end - lane->words < 2)
            return -1;
        x = x << 16 | (uint32_t)(lane->words[0] | lane->words[1] << 8);
        lane->words += 2;
    }
    lane->x = x;
    return step.symbol;
}

static int decode_values(int16_t *q, Places *at, Lane *lane, int low, int count) {
    if (lane->x < LOW)
        return BAD_STATE;
    for (Py_ssize_t i = 0; i < at->n; i++) {
        int class = size_class(at, i) - low;
        int size = next_symbol(lane, class < 0 ? 0 : class < count ? class : count - 1);
        if (size < 0)
            return ENDS_EARLY;
        q[i] = (int16_t)size;
        add_size(at, i, size);
    }
    for (Py_ssize_t i = 0; i < at->n; i++) {
        if (!q[i])
            continue;
        Before *row = &at->signs[at->ids[at->n + i]];
        int wrong = next_symbol(lane, count + sign_class(row));
        if (wrong < 0)
            return ENDS_EARLY;
        int sign = !wrong == (row->sum < 0) ? -1 : 1;
        q[i] = (int16_t)(sign * q[i]);
        add_sign(row, sign);
    }
    return lane->x == LOW && lane->words == lane->end ? DONE : ENDS_ELSEWHERE;
}

PyObject *rank_one_decode(PyObject *self, PyObject *args) {
    Py_buffer q, ids, state, words, frequencies;
    Py_ssize_t contexts, alphabet;
    Places at;
    int low, status = -1;
    if (!PyArg_ParseTuple(args, "w*y*ny*y*y*ni", &q, &ids, &contexts, &state, &words, &frequencies, &alphabet, &low))
        return NULL;
    Py_ssize_t n = count_of(&q, 2), entries = count_of(&frequencies, 8);
    Py_ssize_t tables = entries > 0 && alphabet > 0 ? entries / alphabet : 0;
    if (n < 0 || entries < 0)
        ;
    else if (state.len != 4 || tables <= SIGN_CLASSES || tables > 256 || low < 0 || low > CLASSES + FIRST ||
             alphabet > INT16_MAX || !are_tables(frequencies.buf, entries, alphabet))
        refuse("a state, classes, tables or frequencies are out of range");
    else {
        Step *steps = malloc(sizeof *steps * (size_t)tables << BITS);
        if (!steps)
            PyErr_NoMemory();
        else if (take_places(&at, &ids, n, contexts)) {
            const unsigned char *from = state.buf;
            uint32_t x = from[0] | (uint32_t)from[1] << 8 | (uint32_t)from[2] << 16 | (uint32_t)from[3] << 24;
            Lane lane = {steps, x, words.buf, (const unsigned char *)words.buf + words.len};
            fill_steps(steps, frequencies.buf, entries, alphabet);
            Py_BEGIN_ALLOW_THREADS
            status = decode_values(q.buf, &at, &lane, low, (int)tables - SIGN_CLASSES);
            Py_END_ALLOW_THREADS
            leave_places(&at);
        } else
            leave_places(&at);
        free(steps);
    }
    PyBuffer_Release(&q);
    PyBuffer_Release(&ids);
    PyBuffer_Release(&state);
    PyBuffer_Release(&words);
    PyBuffer_Release(&frequencies);
    return status < 0 ? NULL : PyLong_FromLong(status);
}
