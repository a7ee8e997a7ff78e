/* The columns of a product from 52-bit halves: with a·b = high·2^52 + low, and limbs of 51 bits, the high half counts twice in
 * the next column. High halves first, then one doubling, then the low halves on top: few registers, long independent chains. */

INLINE void columns(word t[10], const factor a[5], const factor b[5])
{
#pragma GCC unroll 10
	for (int k = 0; k < 10; k++)
		t[k] = word_set(0);
#pragma GCC unroll 5
	for (int i = 0; i < 5; i++)
#pragma GCC unroll 5
		for (int j = 0; j < 5; j++)
			t[i + j + 1] = high(t[i + j + 1], a[i], b[j]);
#pragma GCC unroll 10
	for (int k = 1; k < 10; k++)
		t[k] += t[k];
#pragma GCC unroll 5
	for (int i = 0; i < 5; i++)
#pragma GCC unroll 5
		for (int j = 0; j < 5; j++)
			t[i + j] = low(t[i + j], a[i], b[j]);
}

INLINE void columns_of_square(word t[10], const factor a[5])
{
#pragma GCC unroll 10
	for (int k = 0; k < 10; k++)
		t[k] = word_set(0);
#pragma GCC unroll 5
	for (int i = 0; i < 5; i++)
#pragma GCC unroll 5
		for (int j = i + 1; j < 5; j++)
			t[i + j + 1] = high(t[i + j + 1], a[i], a[j]);
#pragma GCC unroll 10
	for (int k = 1; k < 10; k++)
		t[k] += t[k];
#pragma GCC unroll 5
	for (int i = 0; i < 5; i++)
		t[2 * i + 1] = high(t[2 * i + 1], a[i], a[i]);
#pragma GCC unroll 5
	for (int i = 0; i < 5; i++)
#pragma GCC unroll 5
		for (int j = i + 1; j < 5; j++)
			t[i + j] = low(t[i + j], a[i], a[j]);
#pragma GCC unroll 10
	for (int k = 1; k < 10; k++)
		t[k] += t[k];
#pragma GCC unroll 5
	for (int i = 0; i < 5; i++)
		t[2 * i] = low(t[2 * i], a[i], a[i]);
}
