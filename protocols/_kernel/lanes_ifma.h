/* Eight lanes of AVX-512, 52-bit products by IFMA (VPMADD52LUQ, VPMADD52HUQ). See field.h for what a lane layer offers. */

#include <immintrin.h>
#include <stdint.h>

#define LANES 8

typedef uint64_t word __attribute__((vector_size(64)));
typedef __mmask8 mask;
typedef word factor;

#define INLINE static inline __attribute__((always_inline))

INLINE word word_set(uint64_t x) { return (word)_mm512_set1_epi64((long long)x); }
INLINE word word_load(const uint64_t *p) { return (word)_mm512_loadu_si512(p); }
INLINE void word_store(uint64_t *p, word x) { _mm512_storeu_si512(p, (__m512i)x); }
INLINE mask word_equal(word a, word b) { return _mm512_cmpeq_epi64_mask((__m512i)a, (__m512i)b); }
INLINE mask mask_none(void) { return 0; }
INLINE unsigned mask_bits(mask m) { return m; }

INLINE factor factor_of(word x) { return x; }
INLINE word word_of(factor x) { return x; }
INLINE factor factor_select(mask m, factor yes, factor no)
{
	return (factor)_mm512_mask_mov_epi64((__m512i)no, m, (__m512i)yes);
}

INLINE word low(word sum, factor a, factor b)
{
	return (word)_mm512_madd52lo_epu64((__m512i)sum, (__m512i)a, (__m512i)b);
}

INLINE word high(word sum, factor a, factor b)
{
	return (word)_mm512_madd52hi_epu64((__m512i)sum, (__m512i)a, (__m512i)b);
}

#include "columns52.h"
