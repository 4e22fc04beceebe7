// SPDX-License-Identifier: Apache-2.0
// Chunks of a KV stream and the models of its two ends. Byte 0: bit 0 a right checksum, bit 1 a model instead of a chunk.
#include "fuzz/target.hpp"
#include "pith/cache/kv_stream.hpp"
#include "pith/cache/stream_fit.hpp"
#include "support/digest.hpp"
#include "support/seal.hpp"

namespace {

constexpr pith::stream_shape shape{2, 16, 16};
constexpr int tokens = 40;

std::vector<float> numbers(std::uint64_t seed) {
  std::vector<float> out(static_cast<std::size_t>(tokens * 16));
  pith_test::random_bits random(seed);
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = random.uniform() + (i < 16 ? 0.0f : 0.5f * out[i - 16]);
  return out;
}
pith::matrix_view<float const> view(std::vector<float> const& of) { return {of.data(), {tokens, 16}}; }

std::vector<float> const keys[2] = {numbers(1), numbers(2)}, values[2] = {numbers(3), numbers(4)};

pith::stream_model const& model() {
  static pith::stream_model const made = [] {
    pith::stream_fit::rows const layers[] = {{view(keys[0]), view(values[0])}, {view(keys[1]), view(values[1])}};
    return pith::stream_fit::fit(layers).value();
  }();
  return made;
}

void decode(pith::stream_model const& with, std::span<std::byte const> chunk) {
  auto const head = pith::kv_stream(with).peek(chunk);
  if (!head) return;
  std::int64_t const count = head.value().tokens;
  std::vector<float> k(static_cast<std::size_t>(count * 16)), v(k.size());
  static_cast<void>(pith::kv_stream(with).decode<float>(chunk, pith::matrix_view<float>(k.data(), {count, 16}),
                                                        pith::matrix_view<float>(v.data(), {count, 16})));
}

pith_test::bytes encoded(pith::stream_model const& with, int level) {
  pith_test::bytes out(static_cast<std::size_t>(pith::kv_stream::bound_bytes(shape, level, tokens)));
  auto const bytes = [&] {
    if (level > 0) return pith::kv_stream(with).encode<float>(level, 1, 7, view(keys[1]), view(values[1]), out);
    std::vector<pith::bf16> k, v;
    for (float const x : keys[1]) k.push_back(pith::from_float<pith::bf16>(x));
    for (float const x : values[1]) v.push_back(pith::from_float<pith::bf16>(x));
    return pith::kv_stream(with).encode<pith::bf16>(0, 1, 7, {k.data(), {tokens, 16}}, {v.data(), {tokens, 16}}, out);
  }();
  out.resize(static_cast<std::size_t>(bytes.value()));
  return out;
}

}  // namespace

void pith_test::fuzz_one(std::span<std::byte const> input) {
  marked_input const marked(input);
  exact_copy const copy(marked.rest);
  bool const is_model = !input.empty() && (input[0] & std::byte{2}) != std::byte{0};
  if (marked.repair) is_model ? seal_fingerprint(copy.get()) : seal_chunk(copy.get());
  if (!is_model) return decode(model(), copy.get());
  auto const read = pith::stream_model::read(copy.get());
  if (read && read.value().shape() == shape && read.value().levels() >= 1) decode(read.value(), encoded(read.value(), 1));
}

std::vector<pith_test::bytes> pith_test::fuzz_seeds() {
  std::vector<bytes> seeds;
  for (bool const repair : {false, true}) {
    for (int const level : {0, 1, 3}) seeds.push_back(marked(repair, encoded(model(), level)));
    bytes stored(static_cast<std::size_t>(model().stored_bytes()));
    model().write(stored.data());
    seeds.push_back(marked(repair, stored));
    seeds.back()[0] |= std::byte{2};
  }
  return seeds;
}
