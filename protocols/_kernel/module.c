/* The Python extension protocols._ristretto: batches of bytes to whichever kernel the caller names, without the interpreter's lock
 * where it takes long enough. */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>

#include <stdlib.h>
#include <string.h>

#include "kernel.h"

enum { POINT = 32, SCALAR = 32, UNIFORM = 64 };

/* Up to so many checks or scalars, points to multiply (a vector: 0.1 ms) and bytes to hash take less time than a thread that gave the
 * interpreter's lock away may wait to have it again. */
enum { FEW = 16, VECTOR = 8, SHORT = 4096 };

static PyThreadState *let_others_run(size_t count, size_t few)
{
	return count > few ? PyEval_SaveThread() : NULL;
}

static void take_turn(PyThreadState *given)
{
	if (given)
		PyEval_RestoreThread(given);
}

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
	PyThreadState *given = let_others_run(count, operation == VALID ? FEW : VECTOR);
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
	take_turn(given);
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

/* A message is its parts, one after the other. A part is the same bytes for all messages, or a column: (bytes, width) or (bytes, width,
 * a byte that each of its bytes is combined with by exclusive or), or a list of bytes of any lengths. */
struct part {
	const uint8_t *bytes;
	size_t width;    /* of one message's piece */
	size_t stride;   /* 0: the same for all */
	uint8_t pad;
	PyObject *list;  /* or a list */
};

static int read_part(struct part *part, PyObject *from, size_t count)
{
	char *bytes;
	Py_ssize_t length;
	*part = (struct part){0};
	if (PyList_Check(from)) {
		part->list = from;
		if ((size_t)PyList_Size(from) == count)
			return 1;
	} else if (PyTuple_Check(from)) {
		Py_ssize_t width;
		if (!PyArg_ParseTuple(from, "Sn|b", &from, &width, &part->pad) || PyBytes_AsStringAndSize(from, &bytes, &length))
			return 0;
		part->bytes = (uint8_t *)bytes;
		part->width = part->stride = (size_t)width;
		size_t all;
		if (width > 0 && !__builtin_mul_overflow(count, (size_t)width, &all) && all == (size_t)length)
			return 1;
	} else {
		if (PyBytes_AsStringAndSize(from, &bytes, &length))
			return 0;
		part->bytes = (uint8_t *)bytes;
		part->width = (size_t)length;
		return 1;
	}
	PyErr_SetString(PyExc_ValueError, "a column has another length than there are messages");
	return 0;
}

/* A part's piece of message i and its width; NULL with an error set. */
static const uint8_t *piece(size_t *width, const struct part *part, size_t i)
{
	char *bytes;
	Py_ssize_t length;
	*width = part->width;
	if (!part->list)
		return part->bytes + part->stride * i;
	PyObject *item = PyList_GetItem(part->list, (Py_ssize_t)i);
	if (!item || PyBytes_AsStringAndSize(item, &bytes, &length))
		return NULL;
	*width = (size_t)length;
	return (uint8_t *)bytes;
}

/* The messages one after the other; NULL with an error set. */
static uint8_t *put_together(size_t *starts, const struct part *parts, size_t n, size_t count)
{
	size_t room = 1, fixed = 0, all;
	int over = 0;
	for (size_t p = 0; p < n; p++) {
		over |= __builtin_add_overflow(fixed, parts[p].list ? 0 : parts[p].width, &fixed);
		for (size_t i = 0, width; parts[p].list && i < count; i++) {
			if (!piece(&width, &parts[p], i))
				return NULL;
			over |= __builtin_add_overflow(room, width, &room);
		}
	}
	over |= __builtin_mul_overflow(fixed, count, &all) || __builtin_add_overflow(room, all, &room);
	uint8_t *data = over ? NULL : malloc(room), *to = data;
	if (!data) {
		PyErr_NoMemory();
		return NULL;
	}
	for (size_t i = 0; i < count; i++) {
		starts[i] = (size_t)(to - data);
		for (size_t p = 0; p < n; p++) {
			size_t width;
			const uint8_t *from = piece(&width, &parts[p], i);
			for (size_t j = 0; j < width; j++)
				to[j] = from[j] ^ parts[p].pad;
			to += width;
		}
	}
	starts[count] = (size_t)(to - data);
	return data;
}

enum { MOST_PARTS = 16 };

static PyObject *sha512(PyObject *self, PyObject *arguments)
{
	(void)self;
	const char *name;
	Py_ssize_t count;
	PyObject *list, *out = NULL;
	struct part parts[MOST_PARTS];
	if (!PyArg_ParseTuple(arguments, "snO!", &name, &count, &PyTuple_Type, &list))
		return NULL;
	const struct kernel *kernel = kernel_named(name);
	Py_ssize_t n = PyTuple_Size(list);
	if (!kernel)
		return NULL;
	if (count < 0 || count > PY_SSIZE_T_MAX / 64 - 1 || n > MOST_PARTS) {
		PyErr_SetString(PyExc_ValueError, "too many parts or messages");
		return NULL;
	}
	for (Py_ssize_t p = 0; p < n; p++)
		if (!read_part(&parts[p], PyTuple_GetItem(list, p), (size_t)count))
			return NULL;
	size_t *starts = malloc(sizeof *starts * ((size_t)count + 1));
	uint8_t *data = starts ? put_together(starts, parts, (size_t)n, (size_t)count) : NULL;
	if (data)
		out = PyBytes_FromStringAndSize(NULL, 64 * count);
	if (out) {
		uint8_t *to = (uint8_t *)PyBytes_AsString(out);
		PyThreadState *given = let_others_run(starts[count], SHORT);
		kernel->sha512(to, data, starts, (size_t)count);
		take_turn(given);
	} else if (!PyErr_Occurred()) {
		PyErr_NoMemory();
	}
	if (data) {
		memset(data, 0, starts[count]);
		__asm__ volatile("" : : "r"(data) : "memory"); /* messages hold keys and identifiers: the compiler keeps the line above */
	}
	free(data);
	free(starts);
	return out;
}

/* A function of libsodium over a whole batch, so that no Python runs between two elements: void f(out, a) or void f(out, a, b), given by
 * its address, 32 bytes out. `chained`: f(outcome before, a), the first outcome being the first element. */
static PyObject *over(PyObject *arguments, int chained)
{
	unsigned long long address;
	Py_ssize_t width;
	Py_buffer a, b = {0};
	if (!PyArg_ParseTuple(arguments, "Kny*|y*", &address, &width, &a, &b))
		return NULL;
	PyObject *out = NULL;
	int two = b.buf != NULL;
	Py_ssize_t count = width > 0 ? a.len / width : 0;
	if (!address || width <= 0 || a.len % width || (two && b.len != a.len) || (chained && (two || width != SCALAR)))
		PyErr_SetString(PyExc_ValueError, "batches of different lengths");
	else
		out = PyBytes_FromStringAndSize(NULL, count * SCALAR);
	if (out) {
		uint8_t *to = (uint8_t *)PyBytes_AsString(out);
		const uint8_t *left = a.buf, *right = b.buf;
		void (*one)(uint8_t *, const uint8_t *) = (void (*)(uint8_t *, const uint8_t *))(uintptr_t)address;
		void (*pair)(uint8_t *, const uint8_t *, const uint8_t *) =
			(void (*)(uint8_t *, const uint8_t *, const uint8_t *))(uintptr_t)address;
		PyThreadState *given = let_others_run((size_t)count, FEW);
		for (Py_ssize_t i = 0; i < count; i++) {
			if (chained && i == 0)
				memcpy(to, left, SCALAR);
			else if (chained)
				pair(to + SCALAR * i, to + SCALAR * (i - 1), left + SCALAR * i);
			else if (two)
				pair(to + SCALAR * i, left + width * i, right + width * i);
			else
				one(to + SCALAR * i, left + width * i);
		}
		take_turn(given);
	}
	PyBuffer_Release(&a);
	if (two)
		PyBuffer_Release(&b);
	return out;
}

typedef int (*seals)(uint8_t *, unsigned long long *, const uint8_t *, unsigned long long, const uint8_t *, unsigned long long,
                     const uint8_t *, const uint8_t *, const uint8_t *);
typedef int (*opens)(uint8_t *, unsigned long long *, uint8_t *, const uint8_t *, unsigned long long, const uint8_t *, unsigned long long,
                     const uint8_t *, const uint8_t *);

enum { KEY, NONCE, TEXT, DATA, FIELDS, KEY_BYTES = 32, NONCE_BYTES = 12, MARK = 16 };

/* An authenticated cipher of libsodium over a whole batch, given by its address: a list of bytes, with None for what does not open. */
static PyObject *over_texts(PyObject *arguments, int opening)
{
	unsigned long long address;
	Py_ssize_t count;
	PyObject *from[FIELDS], *out;
	struct part parts[FIELDS];
	if (!PyArg_ParseTuple(arguments, "KnOOOO", &address, &count, &from[KEY], &from[NONCE], &from[TEXT], &from[DATA]))
		return NULL;
	if (!address || count < 0) {
		PyErr_SetString(PyExc_ValueError, "no function, or fewer texts than none");
		return NULL;
	}
	for (int f = 0; f < FIELDS; f++) {
		if (!read_part(&parts[f], from[f], (size_t)count))
			return NULL;
		if (parts[f].pad) {
			PyErr_SetString(PyExc_ValueError, "nothing is combined with a byte here");
			return NULL;
		}
	}
	out = PyList_New(count);
	for (Py_ssize_t i = 0; out && i < count; i++) {
		const uint8_t *p[FIELDS];
		size_t width[FIELDS];
		for (int f = 0; f < FIELDS; f++)
			if (!(p[f] = piece(&width[f], &parts[f], (size_t)i)))
				goto failed;
		if (width[KEY] != KEY_BYTES || width[NONCE] != NONCE_BYTES || (!opening && width[TEXT] > PY_SSIZE_T_MAX - MARK)) {
			PyErr_SetString(PyExc_ValueError, "a key has 32 bytes, a nonce 12");
			goto failed;
		}
		int bad = opening && width[TEXT] < MARK;
		PyObject *text = PyBytes_FromStringAndSize(NULL, bad ? 0 : (Py_ssize_t)(opening ? width[TEXT] - MARK : width[TEXT] + MARK));
		if (!text)
			goto failed;
		uint8_t *to = (uint8_t *)PyBytes_AsString(text);
		if (!opening)
			bad = ((seals)(uintptr_t)address)(to, NULL, p[TEXT], width[TEXT], p[DATA], width[DATA], NULL, p[NONCE], p[KEY]);
		else if (!bad)
			bad = ((opens)(uintptr_t)address)(to, NULL, NULL, p[TEXT], width[TEXT], p[DATA], width[DATA], p[NONCE], p[KEY]);
		if (bad) {
			Py_DECREF(text);
			text = Py_NewRef(Py_None);
		}
		PyList_SetItem(out, i, text);
	}
	return out;
failed:
	Py_DECREF(out);
	return NULL;
}

/* Where the first element of zeros stands; -1 for none. Elements may be secret: all are read, and none is branched on. */
static PyObject *first_identity(PyObject *self, PyObject *arguments)
{
	(void)self;
	Py_buffer points;
	if (!PyArg_ParseTuple(arguments, "y*", &points))
		return NULL;
	const uint8_t *p = points.buf;
	uint64_t first = ~0ULL;
	for (uint64_t i = (uint64_t)points.len / POINT; i-- > 0;) {
		uint64_t words[4], any;
		memcpy(words, p + POINT * i, POINT);
		any = words[0] | words[1] | words[2] | words[3];
		uint64_t zero = ((any | (0 - any)) >> 63) - 1; /* all ones for zero */
		first = (i & zero) | (first & ~zero);
	}
	PyBuffer_Release(&points);
	return PyLong_FromLongLong((long long)first);
}

static PyObject *each(PyObject *self, PyObject *arguments) { (void)self; return over(arguments, 0); }
static PyObject *running(PyObject *self, PyObject *arguments) { (void)self; return over(arguments, 1); }

static PyObject *seal_texts(PyObject *self, PyObject *arguments) { (void)self; return over_texts(arguments, 0); }
static PyObject *open_texts(PyObject *self, PyObject *arguments) { (void)self; return over_texts(arguments, 1); }

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
	{"sha512", sha512, METH_VARARGS, "(kernel, count, parts) -> 64 bytes for each message. A part: bytes, (column, width[, pad]) or a list."},
	{"each", each, METH_VARARGS, "(address, width, a[, b]) -> f(a[i][, b[i]]) for each element, 32 bytes each."},
	{"running", running, METH_VARARGS, "(address, 32, a) -> a[0], f(a[0], a[1]), f(f(a[0], a[1]), a[2]), …"},
	{"seal", seal_texts, METH_VARARGS, "(address, count, keys, nonces, texts, data) -> [sealed text]. Each of these is a part, as of sha512."},
	{"open", open_texts, METH_VARARGS, "(address, count, keys, nonces, sealed texts, data) -> [text or None]."},
	{"first_identity", first_identity, METH_VARARGS, "(points) -> where the first identity stands, or -1."},
	{NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_ristretto", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__ristretto(void)
{
	return PyModule_Create(&definition);
}
