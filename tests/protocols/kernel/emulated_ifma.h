/* The two instructions of IFMA, lane by lane: so that the kernel of eight IFMA lanes runs where the processor has AVX-512 alone. */

#include <immintrin.h>
#include <stdint.h>

static inline __attribute__((always_inline, target("avx512f"))) __m512i emulated(__m512i sum, __m512i a, __m512i b, int high)
{
	uint64_t s[8], x[8], y[8];
	_mm512_storeu_si512(s, sum);
	_mm512_storeu_si512(x, a);
	_mm512_storeu_si512(y, b);
	for (int i = 0; i < 8; i++) {
		unsigned __int128 p = (unsigned __int128)(x[i] & ((1ULL << 52) - 1)) * (y[i] & ((1ULL << 52) - 1));
		s[i] += high ? (uint64_t)(p >> 52) : (uint64_t)p & ((1ULL << 52) - 1);
	}
	return _mm512_loadu_si512(s);
}

#define _mm512_madd52lo_epu64(sum, a, b) emulated(sum, a, b, 0)
#define _mm512_madd52hi_epu64(sum, a, b) emulated(sum, a, b, 1)
