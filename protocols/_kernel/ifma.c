/* The batch functions on eight lanes of AVX-512 with IFMA. */
#ifdef __x86_64__
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512ifma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512dq,avx512ifma,tune=icelake-server,prefer-vector-width=512")
#endif
#include "lanes_ifma.h"
#define KERNEL kernel_ifma
#include "batch.h"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
