// SPDX-License-Identifier: Apache-2.0
// One line for each tile of the list: name, channels, bytes and a digest of what it makes of the hard inputs (rule C7).
#pragma once

#include <cstdio>
#include <string>
#include <vector>

#include "laws/all_codecs.hpp"
#include "laws/inputs.hpp"

namespace pith_test {

inline std::vector<std::string> codec_checksums() {
  std::vector<std::string> lines;
  for_each_tile([&]<class Tile>(char const* name) {
    digest bytes;
    std::vector<std::byte> out(static_cast<std::size_t>(Tile::bytes));
    for (input& x : hard_inputs(Tile::tokens, Tile::channels, 7)) {
      // Sums of infinities would be NaNs of either sign: transformed rows that are not saturated keep to finite numbers.
      bool const keeps_infinity = Tile::nan == pith::nan_policy::propagate && pith::is_transformed<Tile>;
      if (keeps_infinity && x.name == "largest floats") continue;
      for (int round = 0; round < (keeps_infinity ? 1 : 2); ++round) {
        pith::encode_tile<Tile>(x.rows.data(), out.data(), sample_state<Tile>());
        bytes.add(out.data(), out.size());
        x.rows[17] = pith::bits_float(0x7fc00000u), x.rows[18] = pith::bits_float(0x7f800000u), x.rows[91] = pith::bits_float(0xff800000u);
      }
    }
    char line[160];
    std::snprintf(line, sizeof line, "%s, %d channels, %lld bytes: %016llx", name, Tile::channels, static_cast<long long>(Tile::bytes),
                  static_cast<unsigned long long>(bytes.value()));
    lines.push_back(line);
  });
  return lines;
}

}  // namespace pith_test
