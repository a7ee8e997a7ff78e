/* A word of eight lanes of AVX-512, and its mask. See field.h for what a lane layer offers. */

#include <immintrin.h>
#include <stdint.h>

#define LANES 8

typedef uint64_t word __attribute__((vector_size(64)));
typedef __mmask8 mask;

#define INLINE static inline __attribute__((always_inline))

INLINE word word_set(uint64_t x) { return (word)_mm512_set1_epi64((long long)x); }
INLINE word word_load(const uint64_t *p) { return (word)_mm512_loadu_si512(p); }
INLINE void word_store(uint64_t *p, word x) { _mm512_storeu_si512(p, (__m512i)x); }
INLINE mask word_equal(word a, word b) { return _mm512_cmpeq_epi64_mask((__m512i)a, (__m512i)b); }
INLINE mask mask_none(void) { return 0; }
INLINE unsigned mask_bits(mask m) { return m; }
