// SPDX-License-Identifier: Apache-2.0
#include "pith/core/status.hpp"

#include <memory>

pith::status call();
pith::result<std::unique_ptr<int>> make();

// refuse 1: nodiscard
// refuse 2: nodiscard
// refuse 3: deleted
// refuse 4: status
void use() {
#if PITH_WRONG == 1
  call();
#elif PITH_WRONG == 2
  make();
#elif PITH_WRONG == 3
  pith::result<std::unique_ptr<int>> made = make();
  pith::result<std::unique_ptr<int>> copy = made;
#elif PITH_WRONG == 4
  bool const good = call();  // success is tested, never converted by accident
#else
  if (!call()) return;
  pith::result<std::unique_ptr<int>> made = make();
#endif
}
