/* Whole batches of bytes in, bytes out: what the extension offers for one lane layer, as a struct of functions. */

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "kernel.h"

static size_t least(size_t a, size_t b)
{
	return a < b ? a : b;
}

static size_t vectors_of(size_t elements)
{
	return (elements + LANES - 1) / LANES;
}

/* There is always one. */
#define EACH(k, count) for (size_t k = 0; k == 0 || k < (count); k++)

#include "field.h"
#include "curve.h"
#include "ristretto.h"
#include "sha512.h"

#define BLOCK (BATCH * LANES) /* elements */

/* `count` encodings, at most ROOTS vectors of them; returns how many of them, from the first on, are valid points other than the identity. */
static size_t take_points(point *r, const uint8_t *encoded, size_t count)
{
	static const uint8_t identity_bytes[32];
	fe s[ROOTS];
	mask valid[ROOTS];
	size_t vectors = vectors_of(count), i = 0;
	EACH(k, vectors)
		s[k] = fe_from_bytes(encoded + 32 * LANES * k, 32, count - LANES * k);
	decode(r, valid, s, vectors);
	while (i < count && mask_bits(valid[i / LANES]) >> i % LANES & 1 && canonical_bytes(encoded + 32 * i) &&
		memcmp(encoded + 32 * i, identity_bytes, 32))
		i++;
	return i;
}

static size_t valid_points(const uint8_t *points, size_t count)
{
	point p[ROOTS];
	for (size_t i = 0; i < count; i += ROOTS * LANES) {
		size_t here = least(ROOTS * LANES, count - i), good = take_points(p, points + 32 * i, here);
		if (good < here)
			return i + good;
	}
	return count;
}

static void hash_to_points(uint8_t *out, const uint8_t *uniform, size_t count)
{
	point p[WAYS];
	fe s;
	for (size_t i = 0; i < count; i += WAYS * LANES) {
		size_t here = least(WAYS * LANES, count - i);
		map_to_points(p, uniform + 64 * i, here);
		for (size_t k = 0; k < vectors_of(here); k++) {
			encode(&s, &p[k]);
			fe_to_bytes(out + 32 * (i + k * LANES), s, here - k * LANES);
		}
	}
}

/* scalar·P for each, P decoded or hashed from `source`. `stride` is the scalars': 32, or 0 for one that serves all. */
static size_t multiply_source(
	uint8_t *out, const uint8_t *scalars, size_t stride, const uint8_t *source, size_t count, int hashed)
{
	point products[BATCH];
	fe encoded[BATCH];
	addend tables[WAYS][TABLE];
	digits k[WAYS];
	if (!stride && count)
		halved_digits(k, scalars, 0, LANES);
	for (size_t start = 0; start < count; start += BLOCK) {
		size_t block = least(BLOCK, count - start), vectors = vectors_of(block);
		for (size_t j = 0; j < vectors; j += WAYS) {
			size_t i = start + j * LANES, here = least(WAYS * LANES, start + block - i), ways = vectors_of(here);
			if (hashed) {
				map_to_points(&products[j], source + 64 * i, here);
			} else {
				size_t good = take_points(&products[j], source + 32 * i, here);
				if (good < here)
					return i + good;
			}
			EACH(w, ways) {
				fill_table(tables[w], &products[j + w]);
				if (stride)
					halved_digits(&k[w], scalars + stride * (i + w * LANES), stride, here - w * LANES);
			}
			each_multiplied(&products[j], (const addend(*)[TABLE])tables, k, stride ? 1 : 0, ways);
		}
		encode_doubled(encoded, products, vectors);
		for (size_t j = 0; j < vectors; j++)
			fe_to_bytes(out + 32 * (start + j * LANES), encoded[j], block - j * LANES);
	}
	return count;
}

static size_t multiply(uint8_t *out, const uint8_t *scalars, size_t stride, const uint8_t *points, size_t count)
{
	return multiply_source(out, scalars, stride, points, count, 0);
}

static void hash_and_multiply(uint8_t *out, const uint8_t *scalars, size_t stride, const uint8_t *uniform, size_t count)
{
	multiply_source(out, scalars, stride, uniform, count, 1);
}

/* Σ scalar·P, by blocks of BLOCK points whose doublings are shared; lanes are added at the end. The digits of lanes that hold no point
 * are zero. Returns SIZE_MAX where there is no memory. */
static size_t weighted_sum(uint8_t *out, const uint8_t *scalars, const uint8_t *points, size_t count)
{
	point total = identity(), part, taken[ROOTS];
	addend(*tables)[TABLE] = aligned_alloc(64, sizeof(addend[TABLE]) * BATCH);
	digits *k = aligned_alloc(64, sizeof(digits) * BATCH);
	size_t done = tables && k ? 0 : SIZE_MAX;
	while (done < count) {
		size_t block = least(BLOCK, count - done), vectors = vectors_of(block);
		for (size_t j = 0; j < vectors; j++) {
			size_t i = done + j * LANES, here = least(LANES, count - i);
			if (j % ROOTS == 0) {
				size_t some = least(ROOTS * LANES, done + block - i), good = take_points(taken, points + 32 * i, some);
				if (good < some) {
					done = i + good;
					goto out;
				}
			}
			fill_table(tables[j], &taken[j % ROOTS]);
			halved_digits(&k[j], scalars + 32 * i, 32, here);
			for (int d = 0; d < DIGITS; d++)
				for (size_t lane = here; lane < LANES; lane++)
					k[j].size[d][lane] = 0;
		}
		interleaved(&part, (const addend(*)[TABLE])tables, k, vectors);
		total = sum_of_points(total, part);
		done += block;
	}
	if (done == count) {
		/* all lanes into the first: rotate and add */
		uint64_t limbs[4 * 5][LANES];
		for (size_t half = LANES / 2; half; half /= 2) {
			fe *coordinates[4] = {&part.x, &part.y, &part.z, &part.t};
			part = total;
			for (int c = 0; c < 4; c++)
				for (int i = 0; i < 5; i++) {
					uint64_t *limb = limbs[5 * c + i];
					word_store(limb, word_of(coordinates[c]->l[i]));
					memmove(limb, limb + half, half * sizeof *limb);
					coordinates[c]->l[i] = factor_of(word_load(limb));
				}
			total = sum_of_points(total, part);
		}
		fe s;
		encode_doubled(&s, &total, 1);
		fe_to_bytes(out, s, 1);
	}
out:
	free(tables);
	free(k);
	return done;
}

const struct kernel KERNEL = {valid_points, hash_to_points, multiply, hash_and_multiply, weighted_sum, sha512};
