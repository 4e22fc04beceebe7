// SPDX-License-Identifier: Apache-2.0
#include "pith/core/bits.hpp"

// expect 1: field<Bits>: Bits must divide 32. Fix: store 3 bits as planes of 2 and 1.
// expect 2: field<Bits>: Bits must divide 32.
// refuse 3: constraints not satisfied
#if PITH_WRONG == 1
std::uint32_t third(std::uint32_t word) { return pith::field<3>(word, 2); }
#elif PITH_WRONG == 2
std::uint32_t whole(std::uint32_t word) { return pith::field<32>(word, 0); }
#elif PITH_WRONG == 3
double wide(std::byte const* from) { return pith::load_scalar<double>(from); }
#else
std::uint32_t third(std::uint32_t word) { return pith::field<4>(word, 2); }
#endif
