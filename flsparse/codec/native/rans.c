/* rANS with static tables: coders/rans.py, one symbol at a time. */

#include "kernel.h"

typedef struct {
    uint32_t frequency, start;
} Slot;

/* Symbol i goes through lane i mod lanes, so that the words in the decoder's order are those of the last symbol to the
   first from back to front. Returns the first word, or NULL where a symbol has no frequency. */
static unsigned char *encode_symbols(
    const int32_t *index, Py_ssize_t n, const Slot *table, Py_ssize_t entries, uint32_t *states, Py_ssize_t lanes,
    unsigned char *end
) {
    Py_ssize_t lane = n % lanes;
    for (Py_ssize_t i = n - 1; i >= 0; i--) {
        lane = (lane ? lane : lanes) - 1;
        int32_t at = index[i];
        if (at < 0 || at >= entries)
            return NULL;
        Slot slot = table[at];
        if (!slot.frequency)
            return NULL;
        uint32_t x = states[lane];
        if (x >> (32 - BITS) >= slot.frequency) {
            *--end = (unsigned char)(x >> 8);
            *--end = (unsigned char)x;
            x >>= 16;
        }
        states[lane] = x + x / slot.frequency * (TOTAL - slot.frequency) + slot.start;
    }
    return end;
}

static PyObject *stream_of(const uint32_t *states, Py_ssize_t lanes, const unsigned char *words, Py_ssize_t size) {
    unsigned char head[9];
    Py_ssize_t length = 0;
    uint64_t count = (uint64_t)size / 2;
    for (; count > 0x7F; count >>= 7)
        head[length++] = (unsigned char)(count | 0x80);
    head[length++] = (unsigned char)count;
    PyObject *stream = PyBytes_FromStringAndSize(NULL, length + 4 * lanes + size);
    if (!stream)
        return NULL;
    unsigned char *out = (unsigned char *)PyBytes_AsString(stream);
    memcpy(out, head, (size_t)length);
    out += length;
    for (Py_ssize_t i = 0; i < lanes; i++)
        for (int shift = 0; shift < 32; shift += 8)
            *out++ = (unsigned char)(states[i] >> shift);
    memcpy(out, words, (size_t)size);
    return stream;
}

static PyObject *encode_with(const int32_t *index, Py_ssize_t n, const int64_t *frequencies, Py_ssize_t entries,
                             Py_ssize_t alphabet, Py_ssize_t lanes) {
    uint32_t *states = malloc(sizeof *states * (size_t)lanes);
    Slot *table = malloc(sizeof *table * (size_t)entries);
    unsigned char *words = malloc(2 * (size_t)n), *first = NULL; /* a symbol spills a word at most */
    PyObject *stream = NULL;
    if (states && table && words) {
        for (Py_ssize_t i = 0; i < entries; i++) {
            Slot before = i % alphabet ? table[i - 1] : (Slot){0, 0};
            table[i] = (Slot){(uint32_t)frequencies[i], before.start + before.frequency};
        }
        for (Py_ssize_t i = 0; i < lanes; i++)
            states[i] = LOW;
        Py_BEGIN_ALLOW_THREADS
        first = encode_symbols(index, n, table, entries, states, lanes, words + 2 * n);
        Py_END_ALLOW_THREADS
        stream = first ? stream_of(states, lanes, first, words + 2 * n - first) : refuse("a symbol has no frequency");
    } else
        PyErr_NoMemory();
    free(states);
    free(table);
    free(words);
    return stream;
}

PyObject *rans_encode(PyObject *self, PyObject *args) {
    Py_buffer index, frequencies;
    Py_ssize_t alphabet, lanes;
    PyObject *stream = NULL;
    if (!PyArg_ParseTuple(args, "y*y*nn", &index, &frequencies, &alphabet, &lanes))
        return NULL;
    Py_ssize_t n = count_of(&index, 4), entries = count_of(&frequencies, 8);
    if (n >= 0 && entries >= 0) {
        if (n < 1 || lanes < 1 || lanes > n || !are_tables(frequencies.buf, entries, alphabet))
            refuse("no symbols, or lanes or frequencies that are out of range");
        else
            stream = encode_with(index.buf, n, frequencies.buf, entries, alphabet, lanes);
    }
    PyBuffer_Release(&index);
    PyBuffer_Release(&frequencies);
    return stream;
}

static int decode_symbols(
    uint16_t *out, Py_ssize_t n, uint32_t *states, Py_ssize_t lanes, const unsigned char *words, Py_ssize_t size,
    const Step *steps, const uint16_t *which, Py_ssize_t tables
) {
    const unsigned char *end = words + size;
    Py_ssize_t lane = 0;
    for (Py_ssize_t i = 0; i < n; i++) {
        uint32_t x = states[lane];
        size_t table = which ? which[i] : 0;
        if (table >= (size_t)tables)
            return BAD_TABLE;
        Step step = steps[table << BITS | (x & (TOTAL - 1))];
        x = (step.frequency_less_1 + 1u) * (x >> BITS) + step.offset;
        if (x < LOW) {
            if (end - words < 2)
                return ENDS_EARLY;
            x = x << 16 | (uint32_t)(words[0] | words[1] << 8);
            words += 2;
        }
        states[lane] = x;
        out[i] = step.symbol;
        lane = lane + 1 == lanes ? 0 : lane + 1;
    }
    for (lane = 0; lane < lanes; lane++)
        if (states[lane] != LOW)
            return ENDS_ELSEWHERE;
    return words == end ? DONE : ENDS_ELSEWHERE;
}

void fill_steps(Step *steps, const int64_t *frequencies, Py_ssize_t entries, Py_ssize_t alphabet) {
    for (Py_ssize_t i = 0; i < entries; i++)
        for (int64_t offset = 0; offset < frequencies[i]; offset++)
            *steps++ = (Step){(uint16_t)(frequencies[i] - 1), (uint16_t)offset, (uint16_t)(i % alphabet)};
}

PyObject *rans_decode(PyObject *self, PyObject *args) {
    Py_buffer out, states, words, frequencies, which;
    Py_ssize_t alphabet;
    int status = -1;
    if (!PyArg_ParseTuple(args, "w*y*y*y*nz*", &out, &states, &words, &frequencies, &alphabet, &which))
        return NULL;
    Py_ssize_t n = count_of(&out, 2), entries = count_of(&frequencies, 8), lanes = states.len / 4;
    Py_ssize_t tables = alphabet > 0 ? entries / alphabet : 0, chosen = which.buf ? count_of(&which, 2) : n;
    if (n < 0 || entries < 0 || chosen < 0)
        ;
    else if (lanes < 1 || states.len % 4 || chosen != n || !are_tables(frequencies.buf, entries, alphabet))
        refuse("lanes, tables or frequencies are out of range");
    else {
        uint32_t *own = malloc(sizeof *own * (size_t)lanes);
        Step *steps = malloc(sizeof *steps * (size_t)tables << BITS);
        if (own && steps) {
            fill_steps(steps, frequencies.buf, entries, alphabet);
            Py_BEGIN_ALLOW_THREADS
            const unsigned char *state = states.buf;
            uint32_t least = UINT32_MAX;
            for (Py_ssize_t i = 0; i < lanes; i++, state += 4) {
                own[i] = state[0] | (uint32_t)state[1] << 8 | (uint32_t)state[2] << 16 | (uint32_t)state[3] << 24;
                least = own[i] < least ? own[i] : least;
            }
            status = least < LOW ? BAD_STATE
                                 : decode_symbols(out.buf, n, own, lanes, words.buf, words.len, steps, which.buf, tables);
            Py_END_ALLOW_THREADS
            if (status == BAD_TABLE)
                refuse("a symbol's table is out of range");
        } else
            PyErr_NoMemory();
        free(own);
        free(steps);
    }
    PyBuffer_Release(&out);
    PyBuffer_Release(&states);
    PyBuffer_Release(&words);
    PyBuffer_Release(&frequencies);
    if (which.buf)
        PyBuffer_Release(&which);
    return status < 0 || status == BAD_TABLE ? NULL : PyLong_FromLong(status);
}
