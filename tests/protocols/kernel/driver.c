/* Runs one kernel on requests from standard input, without Python: for sanitizers, bounds, valgrind, and lanes that this processor
 * lacks. KERNEL_SOURCE is the kernel's file. With CTGRIND, secrets are undefined memory while they are worked on, so that valgrind
 * reports each branch and each address that depends on one (Langley's ctgrind).
 *
 * A request: operation (1 byte), elements (4), bytes of scalars (4), little-endian; scalars; elements. An answer: how many were good
 * (8 bytes), then the outcome. */

#include KERNEL_SOURCE

#include <stdio.h>

#ifdef CTGRIND
#include <valgrind/memcheck.h>
#define SECRET(p, n) VALGRIND_MAKE_MEM_UNDEFINED(p, n)
#define PUBLIC(p, n) VALGRIND_MAKE_MEM_DEFINED(p, n)
#else
#define SECRET(p, n) ((void)0)
#define PUBLIC(p, n) ((void)0)
#endif

static int take(void *p, size_t n) { return n == 0 || fread(p, 1, n, stdin) == n; }
static void give(const void *p, size_t n) { fwrite(p, 1, n, stdout); }

/* Limbs as they are, to try the field at its bounds: a·b, a^2, a + b, a - b, 1/a, each as 32 bytes, of every lane. */
static void field(const uint64_t *limbs)
{
	fe a, b, x;
	for (int i = 0; i < 5; i++) {
		uint64_t la[LANES], lb[LANES];
		for (int lane = 0; lane < LANES; lane++) {
			la[lane] = limbs[i];
			lb[lane] = limbs[5 + i];
		}
		a.l[i] = factor_of(word_load(la));
		b.l[i] = factor_of(word_load(lb));
	}
	fe out[5] = {mul(a, b), square(a), add(a, b), sub(a, b)};
	invert(&x, &a);
	out[4] = x;
	for (int i = 0; i < 5; i++) {
		uint8_t bytes[32 * LANES];
		fe_to_bytes(bytes, out[i], LANES);
		for (int lane = 1; lane < LANES; lane++)
			if (memcmp(bytes, bytes + 32 * lane, 32))
				abort();
		give(bytes, 32);
	}
}

int main(void)
{
	uint8_t operation;
	uint32_t count, scalar_bytes;
	while (take(&operation, 1) && take(&count, 4) && take(&scalar_bytes, 4)) {
		size_t unit = operation == 'H' || operation == 'X' ? 64 : operation == 'F' ? 80 : 32;
		uint8_t *scalars = malloc(scalar_bytes), *source = malloc(count * unit);
		uint8_t *out = malloc(64 * (size_t)count + 64);
		size_t *starts = malloc(((size_t)count + 1) * sizeof *starts);
		if (!take(scalars, scalar_bytes) || !take(source, count * unit))
			return 2;
		size_t stride = scalar_bytes == 32 ? 0 : 32, good = count, size = 32 * (size_t)count;
		switch (operation) {
		case 'V':
			good = KERNEL.valid_points(source, count);
			size = 0;
			break;
		case 'H':
			SECRET(source, count * unit);
			KERNEL.hash_to_points(out, source, count);
			break;
		case 'M':
			SECRET(scalars, scalar_bytes);
			good = KERNEL.multiply(out, scalars, stride, source, count);
			break;
		case 'X':
			SECRET(scalars, scalar_bytes);
			SECRET(source, count * unit);
			KERNEL.hash_and_multiply(out, scalars, stride, source, count);
			break;
		case 'S':
			good = KERNEL.weighted_sum(out, scalars, source, count);
			size = 32;
			break;
		case 'D': /* message i: from i^2 / count^2 of all bytes on */
			for (size_t i = 0; i <= count; i++)
				starts[i] = count ? 32 * i * i / count : 0;
			SECRET(source, count * unit);
			KERNEL.sha512(out, source, starts, count);
			size = 64 * (size_t)count;
			break;
		case 'F':
			for (uint32_t i = 0; i < count; i++)
				field((uint64_t *)(source + 80 * i));
			size = 0;
			break;
		default:
			return 3;
		}
		uint64_t told = good;
		if (good < count)
			size = 0;
		PUBLIC(out, size);
		give(&told, 8);
		give(out, size);
		free(scalars);
		free(source);
		free(starts);
		free(out);
	}
	return 0;
}
