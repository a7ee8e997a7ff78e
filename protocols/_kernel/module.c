/* The Python extension protocols._ristretto: batches of bytes to whichever kernel the caller names, without the interpreter's lock. */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>

#include <string.h>

#include "kernel.h"

enum { POINT = 32, SCALAR = 32, UNIFORM = 64 };

#if defined(__x86_64__) && defined(__GNUC__)
#define HAS_VECTORS 1
#else
#define HAS_VECTORS 0
#endif

struct choice {
	const char *name;
	const struct kernel *kernel;
};

/* Fastest first; ends with what every machine has. */
static const struct choice *choices(void)
{
	static struct choice found[4];
	if (!found[0].name) {
		int n = 0;
#if HAS_VECTORS
		__builtin_cpu_init();
		int wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq");
		if (wide && __builtin_cpu_supports("avx512ifma"))
			found[n++] = (struct choice){"avx512ifma", &kernel_ifma};
		if (wide)
			found[n++] = (struct choice){"avx512", &kernel_fma};
#endif
		found[n] = (struct choice){"scalar", &kernel_scalar};
	}
	return found;
}

static const struct kernel *kernel_named(const char *name)
{
	for (const struct choice *c = choices(); c->name; c++)
		if (!strcmp(c->name, name))
			return c->kernel;
	PyErr_Format(PyExc_ValueError, "this processor has no kernel %s", name);
	return NULL;
}

static PyObject *kernels(PyObject *self, PyObject *none)
{
	(void)self, (void)none;
	PyObject *list = PyList_New(0);
	for (const struct choice *c = choices(); list && c->name; c++) {
		PyObject *name = PyUnicode_FromString(c->name);
		if (!name || PyList_Append(list, name))
			Py_CLEAR(list);
		Py_XDECREF(name);
	}
	return list;
}

enum operation { VALID, HASH, MULTIPLY, HASH_AND_MULTIPLY, SUM };

static PyObject *run(PyObject *arguments, enum operation operation)
{
	int scaled = operation >= MULTIPLY, hashed = operation == HASH || operation == HASH_AND_MULTIPLY;
	const char *name;
	Py_buffer source, scalars = {0};
	PyObject *out = NULL, *result = NULL;
	if (!(scaled ? PyArg_ParseTuple(arguments, "sy*y*", &name, &scalars, &source) : PyArg_ParseTuple(arguments, "sy*", &name, &source)))
		return NULL;
	const struct kernel *kernel = kernel_named(name);
	if (!kernel)
		goto end;
	size_t unit = hashed ? UNIFORM : POINT, count = (size_t)source.len / unit, stride = SCALAR;
	if ((size_t)source.len % unit) {
		PyErr_Format(PyExc_ValueError, "%zd bytes are no multiple of %zu", source.len, unit);
		goto end;
	}
	if (scaled && operation != SUM && scalars.len == SCALAR)
		stride = 0;
	else if (scaled && (size_t)scalars.len != count * SCALAR) {
		PyErr_SetString(PyExc_ValueError, "one scalar for all or one for each is needed");
		goto end;
	}
	out = PyBytes_FromStringAndSize(NULL, operation == VALID ? 0 : operation == SUM ? POINT : (Py_ssize_t)(count * POINT));
	if (!out)
		goto end;
	uint8_t *to = (uint8_t *)PyBytes_AsString(out);
	const uint8_t *k = scalars.buf, *from = source.buf;
	size_t good = count;
	Py_BEGIN_ALLOW_THREADS;
	switch (operation) {
	case VALID:
		good = kernel->valid_points(from, count);
		break;
	case HASH:
		kernel->hash_to_points(to, from, count);
		break;
	case MULTIPLY:
		good = kernel->multiply(to, k, stride, from, count);
		break;
	case HASH_AND_MULTIPLY:
		kernel->hash_and_multiply(to, k, stride, from, count);
		break;
	case SUM:
		good = kernel->weighted_sum(to, k, from, count);
		break;
	}
	Py_END_ALLOW_THREADS;
	if (good == SIZE_MAX)
		PyErr_NoMemory();
	else if (operation == VALID)
		result = PyLong_FromSize_t(good);
	else if (hashed)
		result = Py_NewRef(out);
	else
		result = Py_BuildValue("On", good == count ? out : Py_None, (Py_ssize_t)good);
end:
	Py_XDECREF(out);
	if (scaled)
		PyBuffer_Release(&scalars);
	PyBuffer_Release(&source);
	return result;
}

static PyObject *valid_points(PyObject *self, PyObject *arguments) { (void)self; return run(arguments, VALID); }
static PyObject *hash_to_points(PyObject *self, PyObject *arguments) { (void)self; return run(arguments, HASH); }
static PyObject *multiply(PyObject *self, PyObject *arguments) { (void)self; return run(arguments, MULTIPLY); }
static PyObject *hash_and_multiply(PyObject *self, PyObject *arguments) { (void)self; return run(arguments, HASH_AND_MULTIPLY); }
static PyObject *weighted_sum(PyObject *self, PyObject *arguments) { (void)self; return run(arguments, SUM); }

static PyMethodDef methods[] = {
	{"kernels", kernels, METH_NOARGS, "Names of the kernels that this processor runs, fastest first."},
	{"valid_points", valid_points, METH_VARARGS, "(kernel, points) -> how many, from the first on, are valid and not the identity."},
	{"hash_to_points", hash_to_points, METH_VARARGS, "(kernel, uniform) -> points."},
	{"multiply", multiply, METH_VARARGS, "(kernel, scalars, points) -> (points or None, how many were good)."},
	{"hash_and_multiply", hash_and_multiply, METH_VARARGS, "(kernel, scalars, uniform) -> points."},
	{"weighted_sum", weighted_sum, METH_VARARGS, "(kernel, scalars, points) -> (point or None, how many were good)."},
	{NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_ristretto", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__ristretto(void)
{
	return PyModule_Create(&definition);
}
