// SPDX-License-Identifier: Apache-2.0
// A user's program: includes everything and uses a little.
#if __has_include(<pith/pith.hpp>)
#include <pith/pith.hpp>
#else
#include <pith/core/scalar.hpp>
#include <pith/core/version.hpp>
#endif

#include <cstdio>
#include <cstring>

int main() {
  char version[32];
  std::snprintf(version, sizeof version, "%d.%d.%d", pith::version.major_part, pith::version.minor_part, pith::version.patch_part);
#if defined(PACKAGE_VERSION)
  if (std::strcmp(version, PACKAGE_VERSION) != 0) {
    std::printf("the package says %s, the header %s\n", PACKAGE_VERSION, version);
    return 1;
  }
#endif
  std::printf("pith %s\n", version);
  return pith::to_float(pith::from_float<pith::bf16>(0.5f)) == 0.5f ? 0 : 1;
}
