// SPDX-License-Identifier: Apache-2.0
// Compiled twice, with different flags. PART names this object's functions.
#include "pith/simd/vec.hpp"

#define PITH_TEXT_OF(x) #x
#define PITH_TEXT(x) PITH_TEXT_OF(x)
#define PITH_JOIN_OF(a, b) a##b
#define PITH_JOIN(a, b) PITH_JOIN_OF(a, b)

namespace pith {
inline namespace PITH_ISA {

// Not inlined, so that the linker would merge the two copies if they had one name.
template <class T>
[[gnu::noinline]] char const* compiled_for(T) {
  return PITH_TEXT(PITH_ISA);
}
template <class T>
[[gnu::noinline]] int lanes(T) {
  return simd::width;
}

}  // namespace PITH_ISA
}  // namespace pith

char const* PITH_JOIN(name_, PART)() { return pith::compiled_for(0); }
int PITH_JOIN(lanes_, PART)() { return pith::lanes(0); }
