/* Finds where a JSON value ends, without understanding it, a piece at a time.
 *
 * Laws of this file:
 * - Nothing is read beyond the end of what was given.
 * - Nothing here keeps anything: where a piece ended is told, and given back with the next one.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <string.h>

#define MOST_DEPTH 512 /* also in skim.py */

/* Goes on in a string. Returns the place behind its quote, and that it is not open any more; or the
 * end of the piece, or one more where the last byte escapes the next. */
static const char *
skip_string(const char *at, const char *end, int *is_open)
{
    while (at < end) {
        const char *quote = memchr(at, '"', (size_t)(end - at));
        const char *stop = quote == NULL ? end : quote;
        const char *escape = memchr(at, '\\', (size_t)(stop - at));
        if (escape != NULL) {
            at = escape + 2;
        }
        else if (quote != NULL) {
            *is_open = 0;
            return quote + 1;
        }
        else {
            return end;
        }
    }
    return at;
}

/* Goes on in a value at whose beginning `depth` is 0 and no string is open. Stops where that is too
 * deep, and does not get out of there. */
static const char *
skip(const char *at, const char *end, Py_ssize_t *depth, int *in_string, int *has_ended)
{
    while (at < end && !*has_ended) {
        if (*in_string) {
            at = skip_string(at, end, in_string);
            *has_ended = !*in_string && !*depth;
            continue;
        }
        switch (*at) {
        case '"':
            *in_string = 1;
            break;
        case '{':
        case '[':
            if (++*depth > MOST_DEPTH) {
                return at;
            }
            break;
        case '}':
        case ']':
            if (!*depth) { /* of whoever holds this value, a number or a word */
                *has_ended = 1;
                return at;
            }
            *has_ended = !--*depth;
            break;
        case ',':
            if (!*depth) {
                *has_ended = 1;
                return at;
            }
            break;
        default:
            break;
        }
        at++;
    }
    return at;
}

static PyObject *
skip_value(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_buffer data;
    Py_ssize_t at, most, depth;
    int in_string, has_ended = 0;
    if (!PyArg_ParseTuple(args, "y*nnnp", &data, &at, &most, &depth, &in_string)) {
        return NULL;
    }
    if (at < 0 || at > data.len || most < 0 || depth < 0) {
        PyBuffer_Release(&data);
        PyErr_SetString(PyExc_ValueError, "that is no place in the data");
        return NULL;
    }
    const char *begin = data.buf;
    Py_ssize_t size = data.len - at > most ? at + most : data.len;
    at = skip(begin + at, begin + size, &depth, &in_string, &has_ended) - begin;
    at = at > data.len ? data.len : at;
    PyBuffer_Release(&data);
    return Py_BuildValue("(nnOO)", at, depth, in_string ? Py_True : Py_False,
                         has_ended ? Py_True : Py_False);
}

static PyMethodDef methods[] = {
    {"skip_value", skip_value, METH_VARARGS, "Go on in a value, for so many bytes."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "modelyard.http._skim",
    .m_doc = "Finds where a JSON value ends.",
    .m_methods = methods,
};

PyMODINIT_FUNC
PyInit__skim(void)
{
    return PyModuleDef_Init(&module);
}
