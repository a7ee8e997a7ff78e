/* ristretto255 in batches, once for each lane layer. Points are 32-byte encodings, scalars 32 bytes little-endian (bit 255 is
 * ignored), uniform strings 64 bytes. Constant time in scalars and uniform strings; points as received are public.
 *
 * Where a count comes back, it is how many elements were good: less than `count` names the first that is no canonical encoding, not in
 * the group, or the identity. `out` is then undefined. */

#ifndef LIANFANG_KERNEL_H
#define LIANFANG_KERNEL_H

#include <stddef.h>
#include <stdint.h>

struct kernel {
	size_t (*valid_points)(const uint8_t *points, size_t count);
	void (*hash_to_points)(uint8_t *out, const uint8_t *uniform, size_t count);
	/* out[i] = scalar·point[i], zeros for the identity; stride 32, or 0 for one scalar that serves all */
	size_t (*multiply)(uint8_t *out, const uint8_t *scalars, size_t stride, const uint8_t *points, size_t count);
	/* out[i] = scalar·(map of uniform[i]) */
	void (*hash_and_multiply)(uint8_t *out, const uint8_t *scalars, size_t stride, const uint8_t *uniform, size_t count);
	/* one point, Σ scalar[i]·point[i]; SIZE_MAX where there is no memory */
	size_t (*weighted_sum)(uint8_t *out, const uint8_t *scalars, const uint8_t *points, size_t count);
	/* out[64·i] = SHA-512 of bytes starts[i] … starts[i + 1] of data; lengths are public, bytes are not */
	void (*sha512)(uint8_t *out, const uint8_t *data, const size_t *starts, size_t count);
};

extern const struct kernel kernel_ifma, kernel_fma, kernel_scalar;

#endif
