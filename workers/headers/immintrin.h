// Stands before the compiler's own header of this name: loads of whole vectors ask for the memory
// that a merge reads next. Its loops read a handful of streams, too many for what a core of a Xeon
// keeps under way by itself, and inductor has no word for it. A prefetch never faults, and bits do
// not depend on it. `workers/cpp_compiler.py` says where this is used.
#include_next <immintrin.h>

#ifndef MERGEFRONT_IMMINTRIN_H
#define MERGEFRONT_IMMINTRIN_H

// Bytes ahead; neither fewer nor more are faster (`scripts/bench/results`, merging on an Intel Xeon).
#define MERGEFRONT_AHEAD 1024

static inline __attribute__((always_inline)) __m512i mergefront_loadu_si512(void const* address) {
  _mm_prefetch((char const*)address + MERGEFRONT_AHEAD, _MM_HINT_T0);
  return _mm512_loadu_si512(address);
}

static inline __attribute__((always_inline)) __m512 mergefront_loadu_ps(void const* address) {
  _mm_prefetch((char const*)address + MERGEFRONT_AHEAD, _MM_HINT_T0);
  return _mm512_loadu_ps(address);
}

#define _mm512_loadu_si512 mergefront_loadu_si512
#define _mm512_loadu_ps mergefront_loadu_ps

#endif
