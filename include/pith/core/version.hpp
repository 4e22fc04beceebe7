// SPDX-License-Identifier: Apache-2.0
// The library's version. CMake reads these three lines.
#pragma once

#define PITH_VERSION_MAJOR 0
#define PITH_VERSION_MINOR 1
#define PITH_VERSION_PATCH 0

namespace pith {

struct version_number {
  int major_part, minor_part, patch_part;
};

inline constexpr version_number version{PITH_VERSION_MAJOR, PITH_VERSION_MINOR, PITH_VERSION_PATCH};

// Version of the byte layout of tiles and pages. It changes whenever stored bytes change.
inline constexpr int page_format_version = 1;

}  // namespace pith
