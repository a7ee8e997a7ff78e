/* Constants of edwards25519 and ristretto255 (RFC 9496 §4.1) in limbs of 51 bits; tests compute each of them anew. */

/* d = -121665 / 121666, and 2d */
static const uint64_t D[5] = {0x34dca135978a3ULL, 0x1a8283b156ebdULL, 0x5e7a26001c029ULL, 0x739c663a03cbbULL, 0x52036cee2b6ffULL};
static const uint64_t D2[5] = {0x69b9426b2f159ULL, 0x35050762add7aULL, 0x3cf44c0038052ULL, 0x6738cc7407977ULL, 0x2406d9dc56dffULL};
/* a root of -1; 1 / sqrt(a - d); sqrt(a·d - 1); 1 - d^2; (d - 1)^2 */
static const uint64_t SQRT_M1[5] = {0x61b274a0ea0b0ULL, 0xd5a5fc8f189dULL, 0x7ef5e9cbd0c60ULL, 0x78595a6804c9eULL, 0x2b8324804fc1dULL};
static const uint64_t INVSQRT_A_MINUS_D[5] = {0xfdaa805d40eaULL, 0x2eb482e57d339ULL, 0x7610274bc58ULL, 0x6510b613dc8ffULL, 0x786c8905cfaffULL};
static const uint64_t SQRT_AD_MINUS_ONE[5] = {0x7f6a0497b2e1bULL, 0x1836f0a97afd2ULL, 0x7d747f6be7638ULL, 0x456079e7e6498ULL, 0x376931bf2b834ULL};
static const uint64_t ONE_MINUS_D_SQ[5] = {0x409c1945fc176ULL, 0x719abc6a1fc4fULL, 0x1c37f90b20684ULL, 0x6bccca55eedfULL, 0x29072a8b2b3eULL};
static const uint64_t D_MINUS_ONE_SQ[5] = {0x55aaa44ed4d20ULL, 0x59603c3332635ULL, 0x26d3baf4a7928ULL, 0x120a66e6997a9ULL, 0x5968b37af66c2ULL};
