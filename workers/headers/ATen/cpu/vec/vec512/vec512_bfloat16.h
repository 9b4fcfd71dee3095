// Stands before torch's own header of this name: whole vectors of 16-bit results are stored past the
// caches. A merge writes gigabytes that nothing reads before they have left every cache, and a plain
// store reads each line from memory first, a fifth of what a linear merge of three moves. The stores
// are ordered by the locked instruction that every hand-over to another thread has. Bits do not
// depend on it. `workers/cpp_compiler.py` says where this is used.
#ifndef MERGEFRONT_VEC512_BFLOAT16_H
#define MERGEFRONT_VEC512_BFLOAT16_H

#include <immintrin.h>

#include <cstdint>

// What torch's header includes is read before the name means something else.
#include <ATen/cpu/vec/intrinsics.h>
#include <ATen/cpu/vec/vec_base.h>
#include <c10/util/irange.h>

static inline __attribute__((always_inline)) void mergefront_storeu_si512(
    void* address,
    __m512i values) {
  if (reinterpret_cast<std::uintptr_t>(address) % sizeof(__m512i) == 0) {
    _mm512_stream_si512(static_cast<__m512i*>(address), values);
  } else {
    _mm512_storeu_si512(address, values);
  }
}

#define _mm512_storeu_si512 mergefront_storeu_si512
#include_next <ATen/cpu/vec/vec512/vec512_bfloat16.h>
#undef _mm512_storeu_si512

#endif
