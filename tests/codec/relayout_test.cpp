// SPDX-License-Identifier: Apache-2.0
// Contract rule 15: a change of layout is lossless: it gives the bytes that encoding for the other use would have given.
#include "pith/codec/relayout.hpp"

#include <vector>

#include "laws/inputs.hpp"
#include "pith/codec/block_float.hpp"
#include "pith/codec/float8.hpp"
#include "pith/codec/integer.hpp"
#include "pith/codec/raw.hpp"
#include "support/catch.hpp"

using namespace pith;

namespace {

template <class Codec, int Channels, int PageTokens>
int wrong_relayouts() {
  using dot = typename Codec::template bind<Channels, PageTokens, use::dot>;
  using mix = typename Codec::template bind<Channels, PageTokens, use::mix>;
  int wrong = 0;
  for (auto const& x : pith_test::hard_inputs(dot::tokens, Channels, 9)) {
    std::vector<std::byte> for_dot(dot::bytes), for_mix(mix::bytes), there(mix::bytes, std::byte{0xa5}), back(dot::bytes, std::byte{0x5a});
    dot::encode(x.rows.data(), for_dot.data());
    mix::encode(x.rows.data(), for_mix.data());
    relayout<Codec, Channels, PageTokens, use::dot, use::mix>(for_dot.data(), there.data());
    relayout<Codec, Channels, PageTokens, use::mix, use::dot>(for_mix.data(), back.data());
    wrong += there != for_mix;
    wrong += back != for_dot;
    // Through row-major codes.
    std::vector<std::uint32_t> codes(dot::tokens * Channels);
    codes_of<dot>(for_dot.data(), codes.data());
    std::vector<std::byte> again(dot::bytes, std::byte{0x33});
    from_codes<dot>(codes.data(), for_dot.data(), again.data());
    wrong += again != for_dot;
    for (int t = 0; t < dot::tokens; ++t)
      for (int c = 0; c < Channels; ++c)
        wrong += codes[static_cast<std::size_t>(t * Channels + c)] != mix::layout::get(for_mix.data() + t / mix::layout::tokens * mix::layout::bytes, t % mix::layout::tokens, c);
  }
  return wrong;
}

}  // namespace

TEST_CASE("contract rule 15: relayout gives the bytes of the other layout", "[contract][codec]") {
  CHECK(wrong_relayouts<raw<bf16>, 64, 64>() == 0);
  CHECK(wrong_relayouts<raw<float>, 80, 64>() == 0);
  CHECK(wrong_relayouts<int2<per_channel<64>>, 128, 64>() == 0);
  CHECK(wrong_relayouts<int3<per_token<16>, zero::none>, 80, 64>() == 0);  // the two layouts differ in length
  CHECK(wrong_relayouts<int4<per_token<64>>, 64, 64>() == 0);
  CHECK(wrong_relayouts<int4<per_channel<32>, zero::integer, bf16>, 80, 64>() == 0);
  CHECK(wrong_relayouts<int6<per_token<32>>, 96, 64>() == 0);
  CHECK(wrong_relayouts<int7<per_channel<128>, zero::real, float>, 80, 128>() == 0);
  CHECK(wrong_relayouts<int8<per_token<>, zero::integer>, 64, 64>() == 0);
  CHECK(wrong_relayouts<block_float<5, per_token<32>>, 64, 64>() == 0);
  CHECK(wrong_relayouts<float8<e4m3, per_token<32>>, 64, 64>() == 0);
}
