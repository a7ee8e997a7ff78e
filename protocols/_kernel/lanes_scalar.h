/* One lane in portable C, with the products of lanes_ifma.h: what valgrind, the sanitizers and the debug build run. */

#include <stdint.h>

#define LANES 1

typedef uint64_t word;
typedef uint64_t mask; /* all ones or zero */
typedef uint64_t factor;

#define INLINE static inline __attribute__((always_inline))

INLINE word word_set(uint64_t x) { return x; }
INLINE word word_load(const uint64_t *p) { return *p; }
INLINE void word_store(uint64_t *p, word x) { *p = x; }
INLINE mask word_equal(word a, word b)
{
	uint64_t x = a ^ b;
	return ((x | (0 - x)) >> 63) - 1;
}
INLINE mask mask_none(void) { return 0; }
INLINE unsigned mask_bits(mask m) { return m & 1; }

INLINE factor factor_of(word x) { return x; }
INLINE word word_of(factor x) { return x; }
INLINE factor factor_select(mask m, factor yes, factor no)
{
	__asm__("" : "+r"(m)); /* hides from the compiler that m is a truth value: no branch */
	return no ^ (m & (yes ^ no));
}

INLINE word nineteen(word x) { return 19 * x; }

INLINE word low(word sum, factor a, factor b)
{
	return sum + ((uint64_t)((unsigned __int128)a * b) & 0xfffffffffffffULL);
}

INLINE word high(word sum, factor a, factor b)
{
	return sum + (uint64_t)(((unsigned __int128)a * b) >> 52);
}

#include "columns52.h"
