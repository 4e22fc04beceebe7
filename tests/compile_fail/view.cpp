// SPDX-License-Identifier: Apache-2.0
#include "pith/core/view.hpp"

// expect 1: Rank is 1 to 5. Fix: merge axes.
// expect 2: Rank is 1 to 5. Fix: merge axes.
// refuse 3: constraints not satisfied
// refuse 4: constraints not satisfied
#if PITH_WRONG == 1
using view = pith::tensor_view<float, 6>;
#elif PITH_WRONG == 2
using view = pith::tensor_view<float, 0>;
#elif PITH_WRONG == 3
using view = pith::tensor_view<float, 2, pith::space::device>;  // the host cannot read it
#else
using view = pith::tensor_view<float, 2>;
#endif

float first(view const& from) {
#if PITH_WRONG == 1 || PITH_WRONG == 2
  return from.data[0];
#elif PITH_WRONG == 4
  return from(0);
#else
  return from(0, 0);
#endif
}
