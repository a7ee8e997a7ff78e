/* GF(2^255 - 19) in lanes: each limb holds one limb of LANES independent elements.
 *
 * A lane layer (lanes_*.h) offers: word, LANES unsigned 64-bit integers with C's operators; factor, what its multiplier takes; mask, a
 * truth value a lane; nineteen(x), 19·x modulo 2^64; and columns(t, a, b), the ten columns of a schoolbook product in radix 2^51.
 *
 * Two representations, radix 2^51, five limbs:
 *   fe    carried: every limb at most M = 2^51 + 2^16; what multiplications take.
 *   wide  sums of products, not carried: limbs below 2^62; what additions and subtractions of products work on.
 * A point formula adds and subtracts products and carries once for each value that is multiplied again.
 *
 * Bounds. A product's columns: with limbs at most M, M^2 < 2^102 + 2^68, a low half is below 2^52, a high half at most 2^50 + 2^17
 * and counts twice. Column k+5 comes back to column k times 19. The largest is column 0: one low half, and 19 times four low
 * and five high ones: 2^52·(1 + 19·(4 + 5·2·2^-2)) + 2^27 < 125·2^52 < P = 0.977·2^59. (lanes_fma.h splits at 2^51: at most
 * 2^51·(1 + 19·9) + 2^27, less.) Built with KERNEL_CHECK, the scalar lanes check each of these bounds as they compute. */

#ifdef KERNEL_CHECK
#include <stdio.h>
#include <stdlib.h>
#define BOUND(x, most)                                                                          \
	do {                                                                                       \
		if ((x) > (most)) {                                                                     \
			fprintf(stderr, "%s:%d: %s exceeds its bound\n", __FILE__, __LINE__, #x);            \
			abort();                                                                             \
		}                                                                                       \
	} while (0)
#else
#define BOUND(x, most) ((void)0)
#endif

/* Multiplications are inline. Sanitizers would take minutes over that: KERNEL_SMALL is without. */
#define OUTLINE static __attribute__((noinline))
#ifdef KERNEL_SMALL
#define HOT OUTLINE __attribute__((unused))
#else
#define HOT INLINE
#endif

/* Loops over limbs. With IFMA they are unrolled at once, so that GCC takes limbs for registers and not for places in an array, which
 * saves a sixth of the time; products of doubles, which need more registers, lose by it. */
#ifndef LIMBS
#define LIMBS(i) for (int i = 0; i < 5; i++)
#endif

#define LIMB ((1ULL << 51) - 1)
#define M ((1ULL << 51) + (1ULL << 16))
#define PRODUCT_MOST (125ULL << 52)

typedef struct {
	factor l[5];
} fe;

typedef struct {
	word l[5];
} wide;

#include "constants.h"

/* -- between the representations ------------------------------------------------------------------------------------------ */

/* Limbs below 2^62: what moves up is below 2^11, and 19 times that below 2^16, so limbs come out at most M. */
HOT fe carry(wide a)
{
	fe r;
	word up[5];
	LIMBS(i) {
		BOUND(a.l[i], (1ULL << 62) - 1);
		up[i] = a.l[i] >> 51;
		a.l[i] &= word_set(LIMB);
	}
	a.l[0] += nineteen(up[4]);
#pragma GCC unroll 4
	for (int i = 1; i < 5; i++)
		a.l[i] += up[i - 1];
	LIMBS(i) {
		BOUND(a.l[i], M);
		r.l[i] = factor_of(a.l[i]);
	}
	return r;
}

INLINE wide widen(fe a)
{
	wide r;
	LIMBS(i)
		r.l[i] = word_of(a.l[i]);
	return r;
}

INLINE fe constant(const uint64_t limbs[5])
{
	fe r;
	LIMBS(i)
		r.l[i] = factor_of(word_set(limbs[i]));
	return r;
}

INLINE fe small(uint64_t x)
{
	fe r;
	LIMBS(i)
		r.l[i] = factor_of(word_set(i ? 0 : x));
	return r;
}

/* -- arithmetic on sums of products ---------------------------------------------------------------------------------------- */

INLINE wide fold(const word t[10])
{
	wide r;
	LIMBS(i) {
		r.l[i] = t[i] + nineteen(t[i + 5]);
		BOUND(r.l[i], PRODUCT_MOST);
	}
	return r;
}

HOT wide times(fe a, fe b)
{
	word t[10];
	LIMBS(i) {
		BOUND(a.l[i], M);
		BOUND(b.l[i], M);
	}
	columns(t, a.l, b.l);
	return fold(t);
}

HOT wide squared(fe a)
{
	word t[10];
	LIMBS(i)
		BOUND(a.l[i], M);
	columns_of_square(t, a.l);
	return fold(t);
}

INLINE wide plus(wide a, wide b)
{
	LIMBS(i)
		a.l[i] += b.l[i];
	return a;
}

/* a - b for a product b: plus 2^8·p, whose limbs are at least 2^59 - 19·2^8 > P, so no limb goes below zero. */
INLINE wide minus(wide a, wide b)
{
	LIMBS(i) {
		BOUND(b.l[i], PRODUCT_MOST);
		a.l[i] += word_set((i ? LIMB : LIMB - 18) << 8) - b.l[i];
	}
	return a;
}

INLINE wide twice(wide a)
{
	return plus(a, a);
}

/* -- elements, always carried ------------------------------------------------------------------------------------------------ */

HOT fe mul(fe a, fe b) { return carry(times(a, b)); }
HOT fe square(fe a) { return carry(squared(a)); }
HOT fe add(fe a, fe b) { return carry(plus(widen(a), widen(b))); }
HOT fe sub(fe a, fe b) { return carry(minus(widen(a), widen(b))); }
INLINE fe negate(fe a) { return sub(small(0), a); }

INLINE fe choose(mask m, fe yes, fe no)
{
	LIMBS(i)
		no.l[i] = factor_select(m, yes.l[i], no.l[i]);
	return no;
}

/* The one representative below p, limbs below 2^51. A carried value is below 2p: one p is taken off where value + 19 reaches 2^255. */
INLINE wide canonical(fe a)
{
	wide r = widen(a);
	word up = word_set(19);
	LIMBS(i)
		up = (r.l[i] + up) >> 51;
	r.l[0] += up * 19;
	for (int i = 0; i < 4; i++) {
		r.l[i + 1] += r.l[i] >> 51;
		r.l[i] &= word_set(LIMB);
	}
	r.l[4] &= word_set(LIMB);
	return r;
}

HOT mask is_zero(fe a)
{
	wide r = canonical(a);
	return word_equal(r.l[0] | r.l[1] | r.l[2] | r.l[3] | r.l[4], word_set(0));
}

HOT mask is_negative(fe a) /* RFC 9496 §3.1: odd */
{
	return word_equal(canonical(a).l[0] & word_set(1), word_set(1));
}

INLINE mask equal(fe a, fe b) { return is_zero(sub(a, b)); }
INLINE fe absolute(fe a) { return choose(is_negative(a), negate(a), a); }

/* -- powers, roots -------------------------------------------------------------------------------------------------------------
 *
 * Each squaring of a power waits for the one before, and a processor has room for the next while it does: of several elements at a time,
 * at most ROOTS, powers take little longer than of one. */

#define WAYS 2 /* points at a time (curve.h, ristretto.h) */
#define ROOTS (2 * WAYS)

/* a^(2^n)·b for each of `count`. */
OUTLINE void raised(fe *r, const fe *a, int n, const fe *b, size_t count)
{
	fe x[ROOTS];
	EACH(k, count)
		x[k] = a[k];
	if (count == 1) { /* in registers */
		fe y = *x;
		for (int i = 0; i < n; i++)
			y = square(y);
		*x = y;
	} else {
		for (int i = 0; i < n; i++)
			EACH(k, count)
				x[k] = square(x[k]);
	}
	EACH(k, count)
		r[k] = mul(x[k], b[k]);
}

/* a^(2^250 - 1), and a^11 on the way: the chain of Bernstein's curve25519 (PKC 2006). */
static void power_2_250_minus_1(fe *r, fe *a11, const fe *a, size_t count)
{
	fe x[ROOTS], x10[ROOTS], x50[ROOTS]; /* a^(2^5 - 1), then 20, 40, 100 and 200 for 5 */
	EACH(k, count) {
		fe a2 = square(a[k]), a9 = mul(square(square(a2)), a[k]);
		a11[k] = mul(a9, a2);
		x[k] = mul(square(a11[k]), a9);
	}
	raised(x10, x, 5, x, count);
	raised(x, x10, 10, x10, count);
	raised(x, x, 20, x, count);
	raised(x50, x, 10, x10, count);
	raised(x, x50, 50, x50, count);
	raised(x, x, 100, x, count);
	raised(r, x, 50, x50, count);
}

/* a^(p - 2); zero for zero. */
OUTLINE void invert(fe *r, const fe *a)
{
	fe a11, x;
	power_2_250_minus_1(&x, &a11, a, 1);
	raised(r, &x, 5, &a11, 1);
}

/* RFC 9496 §4.2, SQRT_RATIO_M1, for each of `count`: roots are the non-negative ones of u/v where `was_square`, of SQRT_M1·u/v elsewhere. */
OUTLINE void square_roots_of_ratios(fe *roots, mask *was_square, const fe *up, const fe *down, size_t count)
{
	fe uv3[ROOTS], uv7[ROOTS], x[ROOTS], a11[ROOTS];
	const fe i = constant(SQRT_M1);
	EACH(k, count) {
		fe v = down[k], v3 = mul(square(v), v);
		uv3[k] = mul(up[k], v3);
		uv7[k] = mul(uv3[k], mul(v3, v));
	}
	power_2_250_minus_1(x, a11, uv7, count);
	raised(x, x, 2, uv7, count); /* (u·v^7)^((p - 5) / 8) */
	EACH(k, count) {
		fe u = up[k], v = down[k], r = mul(uv3[k], x[k]), check = mul(v, square(r)), minus_u = negate(u);
		mask correct = equal(check, u), flipped = equal(check, minus_u), flipped_i = equal(check, mul(minus_u, i));
		roots[k] = absolute(choose(flipped | flipped_i, mul(r, i), r));
		was_square[k] = correct | flipped;
	}
}

/* -- bytes --------------------------------------------------------------------------------------------------------------------- */

static inline uint64_t load64(const uint8_t *p)
{
	uint64_t x;
	__builtin_memcpy(&x, p, 8);
	return x; /* x86-64 is little-endian, as the encoding is */
}

/* Lane i from 32 bytes at source + i·stride, bit 255 cleared; lanes from `count` on repeat the first. */
INLINE fe fe_from_bytes(const uint8_t *source, size_t stride, size_t count)
{
	uint64_t limbs[5][LANES];
	for (size_t lane = 0; lane < LANES; lane++) {
		const uint8_t *p = source + (lane < count ? lane : 0) * stride;
		uint64_t a = load64(p), b = load64(p + 8), c = load64(p + 16), d = load64(p + 24);
		limbs[0][lane] = a & LIMB;
		limbs[1][lane] = (a >> 51 | b << 13) & LIMB;
		limbs[2][lane] = (b >> 38 | c << 26) & LIMB;
		limbs[3][lane] = (c >> 25 | d << 39) & LIMB;
		limbs[4][lane] = d >> 12 & LIMB;
	}
	fe r;
	LIMBS(i)
		r.l[i] = factor_of(word_load(limbs[i]));
	return r;
}

INLINE void fe_to_bytes(uint8_t *target, fe a, size_t count)
{
	uint64_t limbs[5][LANES];
	wide r = canonical(a);
	LIMBS(i)
		word_store(limbs[i], r.l[i]);
	for (size_t lane = 0; lane < LANES && lane < count; lane++) {
		uint64_t out[4] = {
			limbs[0][lane] | limbs[1][lane] << 51,
			limbs[1][lane] >> 13 | limbs[2][lane] << 38,
			limbs[2][lane] >> 26 | limbs[3][lane] << 25,
			limbs[3][lane] >> 39 | limbs[4][lane] << 12,
		};
		__builtin_memcpy(target + 32 * lane, out, 32);
	}
}
