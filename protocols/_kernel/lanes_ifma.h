/* Eight lanes of AVX-512, 52-bit products by IFMA (VPMADD52LUQ, VPMADD52HUQ). See field.h for what a lane layer offers. */

#include "lanes_avx512.h"

#define LIMBS(i) _Pragma("GCC unroll 5") for (int i = 0; i < 5; i++)

typedef word factor;

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

/* One instruction for five: of Zen's, as fast as any other multiplication; of Intel's three micro-operations. The compiler is not to see the 19, or
 * it writes shifts and additions again. */
INLINE word nineteen(word x)
{
	word n = word_set(19);
	__asm__("" : "+v"(n));
	return (word)_mm512_mullo_epi64((__m512i)x, (__m512i)n);
}

#include "columns52.h"
