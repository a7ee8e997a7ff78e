/* ristretto255 (RFC 9496) over edwards25519 in lanes. */

/* RFC 9496 §4.3.1. Which lanes are valid; the identity is. `field` holds s, `canonical` whether the bytes were s below p. */
OUTLINE mask decode(point *r, const fe *encoded)
{
	const fe one = small(1);
	fe s = *encoded, ss = square(s), u1 = sub(one, ss), u2 = add(one, ss), u2_squared = square(u2);
	fe v = sub(negate(mul(constant(D), square(u1))), u2_squared), vu = mul(v, u2_squared), root;
	mask is_square = square_root_of_ratio(&root, &one, &vu);
	fe den_x = mul(root, u2), den_y = mul(mul(root, den_x), v);
	r->x = absolute(mul(add(s, s), den_x));
	r->y = mul(u1, den_y);
	r->z = one;
	r->t = mul(r->x, r->y);
	return is_square & ~is_negative(r->t) & ~is_zero(r->y);
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
	square_root_of_ratio(&root, &one, &down);
	fe den1 = mul(root, u1), den2 = mul(root, u2), z_inverse = mul(mul(den1, den2), p->t);
	mask rotate = is_negative(mul(p->t, z_inverse));
	fe x = choose(rotate, mul(p->y, i), p->x), y = choose(rotate, mul(p->x, i), p->y);
	fe den = choose(rotate, mul(den1, constant(INVSQRT_A_MINUS_D)), den2);
	y = choose(is_negative(mul(x, z_inverse)), negate(y), y);
	*r = absolute(mul(den, sub(p->z, y)));
}

/* The one-way map of RFC 9496 §4.3.4 on 64 uniform bytes, as a sum not yet encoded: MAP of each half (Elligator 2). */
OUTLINE void map_half(completed *r, const fe *half)
{
	const fe one = small(1), minus_one = negate(one), i = constant(SQRT_M1), d = constant(D);
	fe t = *half, q = mul(i, square(t)), u = mul(add(q, one), constant(ONE_MINUS_D_SQ));
	fe v = mul(sub(minus_one, mul(q, d)), add(q, d)), s;
	mask was_square = square_root_of_ratio(&s, &u, &v);
	s = choose(was_square, s, negate(absolute(mul(s, t))));
	fe c = choose(was_square, minus_one, q);
	fe n = sub(mul(mul(c, sub(q, one)), constant(D_MINUS_ONE_SQ)), v), ss = square(s);
	/* RFC: (w0·w3, w2·w1, w1·w3, w0·w2), which is E, F, G, H with E = w0, F = w3, G = w1, H = w2 */
	r->e = mul(add(s, s), v);
	r->f = add(one, ss);
	r->g = mul(n, constant(SQRT_AD_MINUS_ONE));
	r->h = sub(one, ss);
}

static void map_to_point(point *r, const uint8_t *uniform, size_t count)
{
	completed a, b;
	fe first = fe_from_bytes(uniform, 64, count), second = fe_from_bytes(uniform + 32, 64, count);
	map_half(&a, &first);
	map_half(&b, &second);
	*r = sum_of_points(point_of(a), point_of(b));
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
