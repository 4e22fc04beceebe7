// SPDX-License-Identifier: Apache-2.0
// The arithmetic that encoders are built from: conversions, division and rounding.
#include <cstdio>

#include "pith/core/rounding.hpp"
#include "pith/core/small_float.hpp"
#include "support/digest.hpp"

int main() {
  pith_test::random_bits random(1);
  pith_test::digest narrow, quotient, rounded;
  for (int i = 0; i < 1'000'000; ++i) {
    float const x = pith::bits_float(static_cast<std::uint32_t>(random()));
    narrow.add(pith::from_float<pith::bf16>(x));
    narrow.add(pith::from_float<pith::f16>(x));
    narrow.add(pith::from_float_saturated<pith::f16>(x));
    narrow.add(pith::from_float<pith::e4m3>(x));
    narrow.add(pith::from_float_saturated<pith::e5m2>(x));
    narrow.add(pith::from_float<pith::e8m0>(x));
    narrow.add(pith::is_finite(x));

    float const a = random.uniform(), b = random.uniform();
    quotient.add(pith::div_rn(a, 7.0f));
    if (b != 0) quotient.add(pith::div_rn(a, b));
    rounded.add(pith::round_even(pith::clamp(a * 15.0f, -7.5f, 7.5f)));
  }
  std::printf("narrow %016llx\nquotient %016llx\nrounded %016llx\n", static_cast<unsigned long long>(narrow.value()),
              static_cast<unsigned long long>(quotient.value()), static_cast<unsigned long long>(rounded.value()));
}
