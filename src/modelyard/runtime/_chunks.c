/* What modelyard/runtime/chunks.py does, in C: to find two words in a chunk costs Python more than
 * all else that a chunk needs here. `chunks.py` says what the functions mean, and is used where
 * nothing is compiled; tests/runtime/test_chunks.py holds the two next to each other.
 *
 * Laws of this file:
 * - Nothing is read beyond the end of what was given, whatever it says of its length.
 * - Nothing here keeps anything: no state, no references.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <string.h>

#define MOST_DIGITS 7 /* their value fits a Py_ssize_t everywhere */

typedef struct {
    const char *data;
    Py_ssize_t size;
    const char *end; /* of all of it, framing included */
} Chunk;

/* The chunk that begins at `at`, if it is whole and written as we write them. */
static int
read_chunk(const char *at, const char *end, Chunk *chunk)
{
    Py_ssize_t size = 0;
    int digits = 0;
    for (; at < end && digits < MOST_DIGITS; at++, digits++) {
        char c = *at;
        if (c >= '0' && c <= '9') {
            size = size * 16 + (c - '0');
        }
        else if (c >= 'a' && c <= 'f') {
            size = size * 16 + (c - 'a' + 10);
        }
        else {
            break;
        }
        if (!size) { /* a zero before the size, or the last chunk */
            return 0;
        }
    }
    if (!digits || end - at < 4 || size > end - at - 4) {
        return 0;
    }
    if (at[0] != '\r' || at[1] != '\n' || at[2 + size] != '\r' || at[3 + size] != '\n') {
        return 0;
    }
    chunk->data = at + 2;
    chunk->size = size;
    chunk->end = at + 4 + size;
    return 1;
}

/* Whether `"usage"` stands there; its g is its rarest letter. */
static int
tells_usage(const char *begin, const char *end)
{
    static const char usage[] = "\"usage\"";
    const char *at = begin + 4;
    while (at < end && (at = memchr(at, 'g', (size_t)(end - at))) != NULL) {
        if (end - at >= 3 && memcmp(at - 4, usage, sizeof usage - 1) == 0) {
            return 1;
        }
        at++;
    }
    return 0;
}

static Py_ssize_t
count_events(const char *at, const char *end)
{
    Py_ssize_t events = 0;
    while ((at = memchr(at, '\n', (size_t)(end - at))) != NULL) {
        at++;
        if (at < end && *at == '\n') {
            events++;
            at++;
        }
    }
    return events;
}

/* Both as a tuple, to which they belong from now on; NULL if one of them is. */
static PyObject *
pair(PyObject *first, PyObject *second)
{
    PyObject *both = first == NULL || second == NULL ? NULL : PyTuple_New(2);
    if (both == NULL) {
        Py_XDECREF(first);
        Py_XDECREF(second);
        return NULL;
    }
    PyTuple_SET_ITEM(both, 0, first);
    PyTuple_SET_ITEM(both, 1, second);
    return both;
}

static PyObject *
whole_events(PyObject *Py_UNUSED(module), PyObject *data)
{
    if (!PyBytes_Check(data)) {
        PyErr_SetString(PyExc_TypeError, "whole_events takes bytes");
        return NULL;
    }
    const char *at = PyBytes_AS_STRING(data);
    const char *end = at + PyBytes_GET_SIZE(data);
    Py_ssize_t events = 0, size = 0;
    while (at < end) {
        Chunk chunk;
        if (!read_chunk(at, end, &chunk) || chunk.size < 3
            || memcmp(chunk.data + chunk.size - 2, "\n\n", 2) != 0
            || tells_usage(chunk.data, chunk.data + chunk.size)) {
            events = size = 0;
            break;
        }
        events += count_events(chunk.data, chunk.data + chunk.size);
        size += chunk.size;
        at = chunk.end;
    }
    return pair(PyLong_FromSsize_t(events), PyLong_FromSsize_t(size));
}

static PyObject *
unframed(PyObject *Py_UNUSED(module), PyObject *data)
{
    if (!PyBytes_Check(data)) {
        PyErr_SetString(PyExc_TypeError, "unframed takes bytes");
        return NULL;
    }
    const char *begin = PyBytes_AS_STRING(data), *at = begin;
    const char *end = at + PyBytes_GET_SIZE(data);
    Py_ssize_t size = 0;
    int is_last = 0;
    Chunk chunk;
    while (at < end) {
        is_last = end - at == 5 && memcmp(at, "0\r\n\r\n", 5) == 0;
        if (is_last) {
            break;
        }
        if (!read_chunk(at, end, &chunk)) {
            Py_RETURN_NONE;
        }
        size += chunk.size;
        at = chunk.end;
    }
    PyObject *body = PyBytes_FromStringAndSize(NULL, size);
    if (body == NULL) {
        return NULL;
    }
    char *to = PyBytes_AS_STRING(body);
    for (const char *from = begin; from < at; from = chunk.end) {
        read_chunk(from, end, &chunk); /* as it was above */
        memcpy(to, chunk.data, (size_t)chunk.size);
        to += chunk.size;
    }
    return pair(body, PyBool_FromLong(is_last));
}

static PyMethodDef methods[] = {
    {"whole_events", whole_events, METH_O, "The events in whole chunks written as we write them, and their bytes."},
    {"unframed", unframed, METH_O, "The data of whole chunks written as we write them."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "modelyard.runtime._chunks",
    .m_doc = "modelyard.runtime.chunks in C.",
    .m_methods = methods,
};

PyMODINIT_FUNC
PyInit__chunks(void)
{
    return PyModuleDef_Init(&module);
}
