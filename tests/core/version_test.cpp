// SPDX-License-Identifier: Apache-2.0
#include "pith/core/version.hpp"

#include "support/catch.hpp"

TEST_CASE("version: the constant is made of the macros that the build reads", "[core]") {
  CHECK(pith::version.major_part == PITH_VERSION_MAJOR);
  CHECK(pith::version.minor_part == PITH_VERSION_MINOR);
  CHECK(pith::version.patch_part == PITH_VERSION_PATCH);
}
