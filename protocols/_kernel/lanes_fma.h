/* Eight lanes of AVX-512 without IFMA: exact products by fused multiplication and addition of doubles, rounding towards zero.
 *
 * For whole numbers a, b with a·b < 2^103:   h = fma(a, b, 2^103) = 2^103 + 2^51·floor(a·b / 2^51), since doubles in
 * [2^103, 2^104) are 2^51 apart;   l = fma(a, b, 2^103 + 2^52 - h) = 2^52 + (a·b mod 2^51), exactly. The lowest 52 bits of h and l
 * as bit patterns are the two halves, so patterns are added as integers and the exponents, a constant, are taken off the sum.
 * (The idea: Emmart, Zheng, Weems, "Faster modular exponentiation using double precision floating point arithmetic on the
 * GPU", ARITH 2018.) No operand is subnormal, so the time does not depend on the values. */

#include "lanes_avx512.h"

typedef __m512d factor;

INLINE factor factor_of(word x) { return _mm512_cvtepu64_pd((__m512i)x); }
INLINE word word_of(factor x) { return (word)_mm512_cvttpd_epu64(x); }
INLINE factor factor_select(mask m, factor yes, factor no) { return _mm512_mask_mov_pd(no, m, yes); }

INLINE word nineteen(word x) { return x + (x << 1) + (x << 4); }

#define TWO_52 0x1p52
#define TWO_103 0x1p103
#define PATTERN_LOW 0x4330000000000000ULL  /* of 2^52 */
#define PATTERN_HIGH 0x4660000000000000ULL /* of 2^103 */
#define TOWARDS_ZERO (_MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC)

/* *above += floor(a·b / 2^51), *here += a·b mod 2^51, each with its pattern. */
INLINE void halves(word *above, word *here, factor a, factor b)
{
	__m512d h = _mm512_fmadd_round_pd(a, b, _mm512_set1_pd(TWO_103), TOWARDS_ZERO);
	__m512d rest = _mm512_sub_pd(_mm512_set1_pd(TWO_103 + TWO_52), h);
	__m512d l = _mm512_fmadd_round_pd(a, b, rest, TOWARDS_ZERO);
	*above += (word)_mm512_castpd_si512(h);
	*here += (word)_mm512_castpd_si512(l);
}

INLINE void columns(word t[10], const factor a[5], const factor b[5])
{
	/* Column k gets one low half for each i + j = k, and one high half for each i + j = k - 1. */
#pragma GCC unroll 10
	for (int k = 0; k < 10; k++) {
		int lows = k < 5 ? k + 1 : 9 - k, highs = k < 6 ? k : 10 - k;
		t[k] = word_set(0 - (uint64_t)lows * PATTERN_LOW - (uint64_t)highs * PATTERN_HIGH);
	}
#pragma GCC unroll 5
	for (int i = 0; i < 5; i++)
#pragma GCC unroll 5
		for (int j = 0; j < 5; j++)
			halves(&t[i + j + 1], &t[i + j], a[i], b[j]);
}

INLINE void columns_of_square(word t[10], const factor a[5])
{
	/* Unequal pairs once, doubled; then the squares. */
	static const int lows[10] = {0, 1, 1, 2, 2, 2, 1, 1, 0, 0};
	for (int k = 0; k < 10; k++) {
		int highs = k ? lows[k - 1] : 0;
		t[k] = word_set(0 - (uint64_t)lows[k] * PATTERN_LOW - (uint64_t)highs * PATTERN_HIGH);
	}
#pragma GCC unroll 5
	for (int i = 0; i < 5; i++)
#pragma GCC unroll 5
		for (int j = i + 1; j < 5; j++)
			halves(&t[i + j + 1], &t[i + j], a[i], a[j]);
#pragma GCC unroll 10
	for (int k = 1; k < 9; k++)
		t[k] += t[k];
#pragma GCC unroll 5
	for (int i = 0; i < 5; i++) {
		t[2 * i] -= word_set(PATTERN_LOW);
		t[2 * i + 1] -= word_set(PATTERN_HIGH);
		halves(&t[2 * i + 1], &t[2 * i], a[i], a[i]);
	}
}
