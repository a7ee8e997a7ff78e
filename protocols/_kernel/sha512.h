/* SHA-512 (FIPS 180-4) of LANES messages at once. */

static const uint64_t ROUND[80] = {
	0x428a2f98d728ae22ULL, 0x7137449123ef65cdULL, 0xb5c0fbcfec4d3b2fULL, 0xe9b5dba58189dbbcULL,
	0x3956c25bf348b538ULL, 0x59f111f1b605d019ULL, 0x923f82a4af194f9bULL, 0xab1c5ed5da6d8118ULL,
	0xd807aa98a3030242ULL, 0x12835b0145706fbeULL, 0x243185be4ee4b28cULL, 0x550c7dc3d5ffb4e2ULL,
	0x72be5d74f27b896fULL, 0x80deb1fe3b1696b1ULL, 0x9bdc06a725c71235ULL, 0xc19bf174cf692694ULL,
	0xe49b69c19ef14ad2ULL, 0xefbe4786384f25e3ULL, 0x0fc19dc68b8cd5b5ULL, 0x240ca1cc77ac9c65ULL,
	0x2de92c6f592b0275ULL, 0x4a7484aa6ea6e483ULL, 0x5cb0a9dcbd41fbd4ULL, 0x76f988da831153b5ULL,
	0x983e5152ee66dfabULL, 0xa831c66d2db43210ULL, 0xb00327c898fb213fULL, 0xbf597fc7beef0ee4ULL,
	0xc6e00bf33da88fc2ULL, 0xd5a79147930aa725ULL, 0x06ca6351e003826fULL, 0x142929670a0e6e70ULL,
	0x27b70a8546d22ffcULL, 0x2e1b21385c26c926ULL, 0x4d2c6dfc5ac42aedULL, 0x53380d139d95b3dfULL,
	0x650a73548baf63deULL, 0x766a0abb3c77b2a8ULL, 0x81c2c92e47edaee6ULL, 0x92722c851482353bULL,
	0xa2bfe8a14cf10364ULL, 0xa81a664bbc423001ULL, 0xc24b8b70d0f89791ULL, 0xc76c51a30654be30ULL,
	0xd192e819d6ef5218ULL, 0xd69906245565a910ULL, 0xf40e35855771202aULL, 0x106aa07032bbd1b8ULL,
	0x19a4c116b8d2d0c8ULL, 0x1e376c085141ab53ULL, 0x2748774cdf8eeb99ULL, 0x34b0bcb5e19b48a8ULL,
	0x391c0cb3c5c95a63ULL, 0x4ed8aa4ae3418acbULL, 0x5b9cca4f7763e373ULL, 0x682e6ff3d6b2b8a3ULL,
	0x748f82ee5defb2fcULL, 0x78a5636f43172f60ULL, 0x84c87814a1f0ab72ULL, 0x8cc702081a6439ecULL,
	0x90befffa23631e28ULL, 0xa4506cebde82bde9ULL, 0xbef9a3f7b2c67915ULL, 0xc67178f2e372532bULL,
	0xca273eceea26619cULL, 0xd186b8c721c0c207ULL, 0xeada7dd6cde0eb1eULL, 0xf57d4f7fee6ed178ULL,
	0x06f067aa72176fbaULL, 0x0a637dc5a2c898a6ULL, 0x113f9804bef90daeULL, 0x1b710b35131c471bULL,
	0x28db77f523047d84ULL, 0x32caab7b40c72493ULL, 0x3c9ebe0a15c9bebcULL, 0x431d67c49c100d4cULL,
	0x4cc5d4becb3e42b6ULL, 0x597f299cfc657e2aULL, 0x5fcb6fab3ad6faecULL, 0x6c44198c4a475817ULL,
};

INLINE word rotated(word x, int n) { return x >> n | x << (64 - n); }

/* One block of each lane: words[i] holds word i of every lane, in the processor's order. Ends up in *state where `active`. */
OUTLINE void compress(word state[8], const uint64_t words[16][LANES], const uint64_t active[LANES])
{
	word w[16], a[8];
	for (int i = 0; i < 16; i++)
		w[i] = word_load(words[i]);
	for (int i = 0; i < 8; i++)
		a[i] = state[i];
	for (int t = 0; t < 80; t += 16) {
#pragma GCC unroll 16
		for (int i = 0; i < 16; i++) {
			if (t) {
				word x = w[(i + 1) & 15], y = w[(i + 14) & 15];
				w[i] += (rotated(x, 1) ^ rotated(x, 8) ^ x >> 7) + w[(i + 9) & 15] + (rotated(y, 19) ^ rotated(y, 61) ^ y >> 6);
			}
			word e = a[4], sum1 = rotated(e, 14) ^ rotated(e, 18) ^ rotated(e, 41), choice = (e & a[5]) ^ (~e & a[6]);
			word t1 = a[7] + sum1 + choice + word_set(ROUND[t + i]) + w[i];
			word b = a[0], sum0 = rotated(b, 28) ^ rotated(b, 34) ^ rotated(b, 39), majority = (b & a[1]) ^ (b & a[2]) ^ (a[1] & a[2]);
			a[7] = a[6], a[6] = a[5], a[5] = a[4], a[4] = a[3] + t1, a[3] = a[2], a[2] = a[1], a[1] = b, a[0] = t1 + sum0 + majority;
		}
	}
	word keep = word_load(active); /* all ones or zero */
	for (int i = 0; i < 8; i++)
		state[i] += a[i] & keep;
}

/* out[64·i] for each message i: bytes starts[i] … starts[i + 1] of data. The messages' lengths are public. */
static void sha512(uint8_t *out, const uint8_t *data, const size_t *starts, size_t count)
{
	static const uint64_t START[8] = {
		0x6a09e667f3bcc908ULL, 0xbb67ae8584caa73bULL, 0x3c6ef372fe94f82bULL, 0xa54ff53a5f1d36f1ULL,
		0x510e527fade682d1ULL, 0x9b05688c2b3e6c1fULL, 0x1f83d9abfb41bd6bULL, 0x5be0cd19137e2179ULL,
	};
	for (size_t first = 0; first < count; first += LANES) {
		word state[8];
		for (int i = 0; i < 8; i++)
			state[i] = word_set(START[i]);
		size_t blocks[LANES], most = 0;
		for (size_t lane = 0; lane < LANES; lane++) {
			size_t m = first + lane, length = m < count ? starts[m + 1] - starts[m] : 0;
			blocks[lane] = m < count ? (length + 17 + 127) / 128 : 0;
			most = blocks[lane] > most ? blocks[lane] : most;
		}
		for (size_t block = 0; block < most; block++) {
			uint64_t words[16][LANES], active[LANES];
			for (size_t lane = 0; lane < LANES; lane++) {
				uint8_t last[128];
				const uint8_t *from = last;
				active[lane] = block < blocks[lane] ? ~0ULL : 0;
				if (!active[lane]) {
					memset(last, 0, sizeof last);
				} else {
					size_t length = starts[first + lane + 1] - starts[first + lane], at = 128 * block;
					const uint8_t *message = data + starts[first + lane];
					if (at + 128 <= length) {
						from = message + at;
					} else { /* padding: 0x80, zeros, the length in bits */
						size_t rest = at < length ? length - at : 0;
						memset(last, 0, sizeof last);
						if (rest)
							memcpy(last, message + at, rest);
						if (at <= length)
							last[rest] = 0x80;
						uint64_t bits = __builtin_bswap64((uint64_t)length * 8);
						if (block == blocks[lane] - 1)
							memcpy(last + 120, &bits, 8);
					}
				}
				for (int i = 0; i < 16; i++)
					words[i][lane] = __builtin_bswap64(load64(from + 8 * i));
			}
			compress(state, words, active);
		}
		uint64_t lanes[8][LANES];
		for (int i = 0; i < 8; i++)
			word_store(lanes[i], state[i]);
		for (size_t lane = 0; lane < LANES && first + lane < count; lane++)
			for (int i = 0; i < 8; i++) {
				uint64_t x = __builtin_bswap64(lanes[i][lane]);
				memcpy(out + 64 * (first + lane) + 8 * i, &x, 8);
			}
	}
}
