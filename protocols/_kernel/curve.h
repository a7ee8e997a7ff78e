/* edwards25519 in lanes: -x^2 + y^2 = 1 + d·x^2·y^2, extended coordinates (X : Y : Z : T), x = X/Z, y = Y/Z, x·y = T/Z.
 *
 * Formulas: Hisil, Wong, Carter, Dawson, "Twisted Edwards curves revisited" (ASIACRYPT 2008), as dbl-2008-hwcd and add-2008-hwcd-3 of the
 * Explicit-Formulas Database for a = -1; complete on this curve, so no case is special. Each gives E, F, G, H with
 * X = E·F, Y = G·H, Z = F·G, T = E·H; what comes next decides which of these products are needed, and in which sums. */

typedef struct {
	fe x, y, z, t;
} point;

typedef struct {
	fe e, f, g, h;
} completed;

typedef struct { /* to double */
	fe x, y, z;
} projective;

typedef struct { /* to add to: y - x, y + x, z, t */
	fe ymx, ypx, z, t;
} summand;

typedef struct { /* to be added: y - x, y + x, 2z, 2d·t */
	fe ymx, ypx, z2, t2d;
} addend;

INLINE projective projective_of(completed p)
{
	return (projective){mul(p.e, p.f), mul(p.g, p.h), mul(p.f, p.g)};
}

INLINE point point_of(completed p)
{
	return (point){mul(p.e, p.f), mul(p.g, p.h), mul(p.f, p.g), mul(p.e, p.h)};
}

INLINE summand summand_of(completed p)
{
	wide x = times(p.e, p.f), y = times(p.g, p.h);
	return (summand){carry(minus(y, x)), carry(plus(y, x)), mul(p.f, p.g), mul(p.e, p.h)};
}

INLINE addend addend_of_summand(summand s)
{
	return (addend){s.ymx, s.ypx, add(s.z, s.z), mul(s.t, constant(D2))};
}

INLINE point identity(void)
{
	return (point){small(0), small(1), small(1), small(0)};
}

INLINE summand summand_of_point(point p)
{
	return (summand){sub(p.y, p.x), add(p.y, p.x), p.z, p.t};
}

/* dbl-2008-hwcd with all four of its E, F, G, H of the sign that needs the fewest operations. E = 2·X·Y. */
INLINE completed doubled(projective p)
{
	wide a = squared(p.x), b = squared(p.y), c = twice(squared(p.z));
	return (completed){
		carry(twice(times(p.x, p.y))),
		carry(minus(plus(c, a), b)),
		carry(minus(b, a)),
		carry(plus(a, b)),
	};
}

/* add-2008-hwcd-3; where `negative`, p - q: the addend's sums are swapped, and T's sign swaps F and G. */
INLINE completed added(summand p, addend q, mask negative)
{
	wide a = times(p.ymx, choose(negative, q.ypx, q.ymx)), b = times(p.ypx, choose(negative, q.ymx, q.ypx));
	wide c = times(p.t, q.t2d), d = times(p.z, q.z2);
	fe less = carry(minus(d, c)), more = carry(plus(d, c));
	return (completed){
		carry(minus(b, a)),
		choose(negative, more, less),
		choose(negative, less, more),
		carry(plus(b, a)),
	};
}

INLINE point sum_of_points(point p, point q)
{
	return point_of(added(summand_of_point(p), addend_of_summand(summand_of_point(q)), mask_none()));
}

/* -- windows of four bits ------------------------------------------------------------------------------------------------------ */

#define DIGITS 64
#define TABLE 8 /* 1·P … 8·P */

/* Signed digits of LANES scalars below 2^255: scalar = Σ digit·16^i, -8 <= digit <= 8, as size and sign. */
typedef struct {
	uint64_t size[DIGITS][LANES], minus[DIGITS][LANES];
} digits;

/* Half of each scalar modulo the group order, as digits: outcomes are doubled when they are encoded (ristretto.h). All of it in
 * constant time. */
static void halved_digits(digits *r, const uint8_t *scalars, size_t stride, size_t count)
{
	static const uint64_t ORDER[4] = {0x5812631a5cf5d3edULL, 0x14def9dea2f79cd6ULL, 0, 0x1000000000000000ULL};
	for (size_t lane = 0; lane < LANES; lane++) {
		const uint8_t *p = scalars + (lane < count ? lane : 0) * stride;
		uint64_t k[4] = {load64(p), load64(p + 8), load64(p + 16), load64(p + 24) & (~0ULL >> 1)};
		uint64_t odd = 0 - (k[0] & 1);
		unsigned __int128 sum = 0;
		for (int i = 0; i < 4; i++) {
			sum += (unsigned __int128)k[i] + (ORDER[i] & odd);
			k[i] = (uint64_t)sum;
			sum >>= 64;
		}
		for (int i = 0; i < 3; i++)
			k[i] = k[i] >> 1 | k[i + 1] << 63;
		k[3] >>= 1;
		uint64_t up = 0;
		for (int i = 0; i < DIGITS; i++) {
			uint64_t nibble = (k[i / 16] >> (4 * (i % 16)) & 15) + up;
			up = i < DIGITS - 1 ? (nibble + 7) >> 4 : 0; /* 9 … 16 become -7 … 0 */
			uint64_t digit = nibble - (up << 4), sign = 0 - (digit >> 63);
			r->size[i][lane] = (digit ^ sign) - sign;
			r->minus[i][lane] = digit >> 63;
		}
	}
}

OUTLINE void fill_table(addend table[TABLE], const point *p)
{
	summand s = summand_of_point(*p);
	table[0] = addend_of_summand(s);
	for (int i = 1; i < TABLE; i++) {
		s = summand_of(added(s, table[0], mask_none()));
		table[i] = addend_of_summand(s);
	}
}

/* size·P for each lane's own size, 0 … 8: every entry is read, whichever is wanted. */
INLINE addend looked_up(const addend table[TABLE], word size)
{
	addend r = {small(1), small(1), small(2), small(0)};
	for (int i = 0; i < TABLE; i++) {
		mask here = word_equal(size, word_set((uint64_t)i + 1));
		r.ymx = choose(here, table[i].ymx, r.ymx);
		r.ypx = choose(here, table[i].ypx, r.ypx);
		r.z2 = choose(here, table[i].z2, r.z2);
		r.t2d = choose(here, table[i].t2d, r.t2d);
	}
	return r;
}

OUTLINE void add_digit(completed *r, const summand *s, const addend table[TABLE], const digits *k, int i)
{
	mask negative = word_equal(word_load(k->minus[i]), word_set(1));
	*r = added(*s, looked_up(table, word_load(k->size[i])), negative);
}

/* Of `count` sums at a time: while the products of one wait for each other, those of the next go on. */
OUTLINE void double_four_times(summand *s, completed *p, size_t count)
{
	projective q[WAYS];
	for (int i = 0; i < 4; i++) {
		EACH(w, count)
			q[w] = projective_of(p[w]);
		EACH(w, count)
			p[w] = doubled(q[w]);
	}
	EACH(w, count)
		s[w] = summand_of(p[w]);
}

static void start(summand *s, completed *p)
{
	const fe one = small(1), zero = small(0);
	*s = (summand){one, one, one, zero};
	*p = (completed){zero, one, one, one};
}

/* scalar·P for each of `count` tables, at most WAYS, and their digits, each lane for itself; `step` is 0 where digits[0] serves all. */
static void each_multiplied(point *r, const addend (*tables)[TABLE], const digits *scalars, size_t step, size_t count)
{
	summand s[WAYS];
	completed product[WAYS];
	EACH(w, count)
		start(&s[w], &product[w]);
	for (int i = DIGITS - 1; i >= 0; i--) {
		if (i < DIGITS - 1)
			double_four_times(s, product, count);
		EACH(w, count)
			add_digit(&product[w], &s[w], tables[w], &scalars[w * step], i);
	}
	EACH(w, count)
		r[w] = point_of(product[w]);
}

/* Σ scalar·P over `count` tables and their digits, each lane for itself (Straus 1964): the doublings are shared. */
static void interleaved(point *r, const addend (*tables)[TABLE], const digits *scalars, size_t count)
{
	summand s;
	completed sum;
	start(&s, &sum);
	for (int i = DIGITS - 1; i >= 0; i--) {
		if (i < DIGITS - 1)
			double_four_times(&s, &sum, 1);
		for (size_t j = 0; j < count; j++) {
			if (j)
				s = summand_of(sum);
			add_digit(&sum, &s, tables[j], &scalars[j], i);
		}
	}
	*r = point_of(sum);
}
