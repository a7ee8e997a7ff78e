/* The batch functions on eight lanes of AVX-512 without IFMA. */
#ifdef __x86_64__
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512dq,tune=skylake-avx512,prefer-vector-width=512")
#endif
#include "lanes_fma.h"
#define KERNEL kernel_fma
#include "batch.h"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
