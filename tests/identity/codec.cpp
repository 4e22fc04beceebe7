// SPDX-License-Identifier: Apache-2.0
// Rule C7: every codec of the list stores the same bytes under every set of flags. The lines are also compared with
// tests/golden/checksums.txt, by tests/codec/checksum_test.cpp.
#include "laws/checksums.hpp"

int main() {
  for (std::string const& line : pith_test::codec_checksums()) std::printf("%s\n", line.c_str());
}
