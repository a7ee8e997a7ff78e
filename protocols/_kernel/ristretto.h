/* ristretto255 (RFC 9496) over edwards25519 in lanes. */

/* RFC 9496 §4.3.1, for each of `count` points, at most ROOTS. Which lanes are valid; the identity is. The fields hold s, of bytes below p. */
OUTLINE void decode(point *r, mask *valid, const fe *encoded, size_t count)
{
	const fe one = small(1);
	fe u1[ROOTS], u2[ROOTS], v[ROOTS], vu[ROOTS], ones[ROOTS], roots[ROOTS];
	EACH(k, count) {
		fe ss = square(encoded[k]);
		u1[k] = sub(one, ss);
		u2[k] = add(one, ss);
		fe u2_squared = square(u2[k]);
		v[k] = sub(negate(mul(constant(D), square(u1[k]))), u2_squared);
		vu[k] = mul(v[k], u2_squared);
		ones[k] = one;
	}
	square_roots_of_ratios(roots, valid, ones, vu, count);
	EACH(k, count) {
		fe s = encoded[k], den_x = mul(roots[k], u2[k]), den_y = mul(mul(roots[k], den_x), v[k]);
		r[k].x = absolute(mul(add(s, s), den_x));
		r[k].y = mul(u1[k], den_y);
		r[k].z = one;
		r[k].t = mul(r[k].x, r[k].y);
		valid[k] &= ~is_negative(r[k].t) & ~is_zero(r[k].y);
	}
}

/* Whether the bytes are canonical: below p, not negative, bit 255 clear. They are public. */
static int canonical_bytes(const uint8_t *p)
{
	uint64_t a = load64(p), b = load64(p + 8), c = load64(p + 16), d = load64(p + 24);
	int below = d < ~0ULL >> 1 || (d == ~0ULL >> 1 && (c != ~0ULL || b != ~0ULL || a < 0 - 19ULL));
	return below && !(a & 1);
}

/* RFC 9496 §4.3.2. */
OUTLINE void encode(fe *r, const point *p)
{
	const fe one = small(1), i = constant(SQRT_M1);
	fe u1 = carry(times(add(p->z, p->y), sub(p->z, p->y))), u2 = mul(p->x, p->y), down = mul(u1, square(u2)), root;
	mask is_square;
	square_roots_of_ratios(&root, &is_square, &one, &down, 1);
	fe den1 = mul(root, u1), den2 = mul(root, u2), z_inverse = mul(mul(den1, den2), p->t);
	mask rotate = is_negative(mul(p->t, z_inverse));
	fe x = choose(rotate, mul(p->y, i), p->x), y = choose(rotate, mul(p->x, i), p->y);
	fe den = choose(rotate, mul(den1, constant(INVSQRT_A_MINUS_D)), den2);
	y = choose(is_negative(mul(x, z_inverse)), negate(y), y);
	*r = absolute(mul(den, sub(p->z, y)));
}

/* The one-way map of RFC 9496 §4.3.4 on 64 uniform bytes, as a sum not yet encoded: MAP of each half (Elligator 2). */
OUTLINE void map_halves(completed *r, const fe *halves, size_t count) /* count <= ROOTS */
{
	const fe one = small(1), minus_one = negate(one), i = constant(SQRT_M1), d = constant(D);
	fe q[ROOTS], u[ROOTS], v[ROOTS], roots[ROOTS];
	mask was_square[ROOTS];
	EACH(k, count) {
		q[k] = mul(i, square(halves[k]));
		u[k] = mul(add(q[k], one), constant(ONE_MINUS_D_SQ));
		v[k] = mul(sub(minus_one, mul(q[k], d)), add(q[k], d));
	}
	square_roots_of_ratios(roots, was_square, u, v, count);
	EACH(k, count) {
		fe s = choose(was_square[k], roots[k], negate(absolute(mul(roots[k], halves[k]))));
		fe c = choose(was_square[k], minus_one, q[k]);
		fe n = sub(mul(mul(c, sub(q[k], one)), constant(D_MINUS_ONE_SQ)), v[k]), ss = square(s);
		/* RFC: (w0·w3, w2·w1, w1·w3, w0·w2), which is E, F, G, H with E = w0, F = w3, G = w1, H = w2 */
		r[k].e = mul(add(s, s), v[k]);
		r[k].f = add(one, ss);
		r[k].g = mul(n, constant(SQRT_AD_MINUS_ONE));
		r[k].h = sub(one, ss);
	}
}

/* `count` elements, at most WAYS vectors of them. */
static void map_to_points(point *r, const uint8_t *uniform, size_t count)
{
	fe halves[ROOTS];
	completed mapped[ROOTS];
	size_t vectors = vectors_of(count);
	EACH(k, vectors) {
		size_t i = k * LANES, here = least(LANES, count - i);
		halves[2 * k] = fe_from_bytes(uniform + 64 * i, 64, here);
		halves[2 * k + 1] = fe_from_bytes(uniform + 64 * i + 32, 64, here);
	}
	map_halves(mapped, halves, 2 * vectors);
	EACH(k, vectors)
		r[k] = sum_of_points(point_of(mapped[2 * k]), point_of(mapped[2 * k + 1]));
}

/* -- encoding doubled points in batches -------------------------------------------------------------------------------------------
 *
 * 2·P is encoded with an inversion instead of a root, and one inversion serves a whole batch (Montgomery's trick). From the doubling's
 *     e = 2·X·Y, f = Z^2 + d·T^2, g = Y^2 + X^2, h = Z^2 - d·T^2,   2·P = (e·h : f·g : f·h : e·g)
 * everything that RFC 9496 §4.3.2 needs of 2·P is a product with 1/(e·g) or 1/(f·h). (Hamburg's "Decaf", CRYPTO 2015, section 6,
 * over the isogeny; curve25519-dalek's documentation derives the batched form.) */

#define BATCH 32 /* points a lane between two inversions */

static void encode_doubled(fe *r, const point *p, size_t count) /* count <= BATCH */
{
	fe e[BATCH], f[BATCH], g[BATCH], h[BATCH], eg[BATCH], fh[BATCH], running[BATCH + 1];
	mask zero[BATCH];
	const fe one = small(1), i = constant(SQRT_M1);
	running[0] = one;
	for (size_t j = 0; j < count; j++) {
		fe zz = square(p[j].z), dtt = mul(square(p[j].t), constant(D));
		e[j] = carry(twice(times(p[j].x, p[j].y)));
		f[j] = add(zz, dtt);
		g[j] = carry(plus(squared(p[j].y), squared(p[j].x)));
		h[j] = sub(zz, dtt);
		eg[j] = mul(e[j], g[j]);
		fh[j] = mul(f[j], h[j]);
		fe both = mul(eg[j], fh[j]);
		zero[j] = is_zero(both); /* 2·P is the identity, or of its coset: encodes as zero */
		running[j + 1] = mul(running[j], choose(zero[j], one, both));
	}
	fe inverse;
	invert(&inverse, &running[count]);
	for (size_t j = count; j-- > 0;) {
		fe both = choose(zero[j], one, mul(eg[j], fh[j])), own = mul(inverse, running[j]);
		inverse = mul(inverse, both);
		fe z_inverse = mul(eg[j], own), t_inverse = mul(fh[j], own);
		mask rotate = is_negative(mul(eg[j], z_inverse));
		fe e2 = choose(rotate, g[j], e[j]), g2 = choose(rotate, negate(e[j]), g[j]);
		fe h2 = choose(rotate, mul(f[j], i), h[j]), magic = choose(rotate, i, constant(INVSQRT_A_MINUS_D));
		g2 = choose(is_negative(mul(mul(h2, e2), z_inverse)), negate(g2), g2);
		fe s = absolute(mul(sub(h2, g2), mul(magic, mul(g2, t_inverse))));
		r[j] = choose(zero[j], small(0), s);
	}
}
