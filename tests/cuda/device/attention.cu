// SPDX-License-Identifier: Apache-2.0
// paged_attention on the device against attention in double over the decoded pages: random ragged shapes, several compositions.
#include <algorithm>
#include <cmath>

#include "pith/codec/block_float.hpp"
#include "pith/codec/hadamard.hpp"
#include "pith/codec/kv_page.hpp"
#include "pith/cuda/environment.cuh"
#include "pith/cuda/paged_attention.hpp"
#include "tests/cuda/device/device_case.hpp"
#include "tests/cuda/device/paged_host.hpp"

namespace {

using pith::bf16;
using pith::per_channel;
using pith::per_token;
using pith::space;
using pith_test::paged_host;

template <class Page, class Accuracy>
void compare(pith_test::device_test& test, int rounds, double most_rms) {
  constexpr int dk = Page::key_channels, dv = Page::value_channels;
  auto made = pith::cuda_environment::make(nullptr, pith::plain_device_memory());
  if (!test.need(made.error(), "environment")) return;
  pith_test::random_bits random(31);
  for (int round = 0; round < rounds; ++round) {
    std::vector<std::int64_t> lengths, q_indptr{0};
    std::int64_t most = 0;
    int const kv_heads = 1 + static_cast<int>(random() % 3), group = 1 + static_cast<int>(random() % 9);
    for (std::size_t s = 0, count = 1 + random() % 5; s < count; ++s) {
      lengths.push_back(static_cast<std::int64_t>(random() % (s == 0 ? 3000 : 300)));
      std::int64_t const queries = round % 2 == 0 ? 1 : static_cast<std::int64_t>(random() % 70);
      q_indptr.push_back(q_indptr.back() + std::min(std::max<std::int64_t>(lengths.back(), 1), queries));
      most = std::max(most, q_indptr.back() - q_indptr[s]);
    }
    paged_host<Page> const host(lengths, kv_heads, random);
    std::int64_t const tokens = q_indptr.back(), heads = kv_heads * group, window = round % 3 == 2 ? 100 : 0;
    std::vector<bf16> q(static_cast<std::size_t>(tokens * heads * dk));
    for (bf16& x : q) x = pith::from_float<bf16>(random.uniform());
    pith_test::on_device<std::byte> const bytes(host.bytes);
    pith_test::on_device<std::int64_t> const indptr(host.indptr), queries(q_indptr);
    pith_test::on_device<std::uint32_t> const indices(host.indices);
    pith_test::on_device<std::int32_t> const last(host.last_page_len);
    pith_test::on_device<bf16> const asked(q);
    pith_test::on_device<float> const out(static_cast<std::size_t>(tokens * heads * dv)), lse(static_cast<std::size_t>(tokens * heads));
    pith::device_pages<Page> const pages{.base = bytes.data(),
                                         .block_stride = host.block_stride,
                                         .head_stride = host.head_stride,
                                         .blocks = host.blocks,
                                         .kv_heads = kv_heads,
                                         .sequences = static_cast<std::int64_t>(lengths.size()),
                                         .indptr = indptr.data(),
                                         .indices = indices.data(),
                                         .last_page_len = last.data()};
    pith::status const run =
        pith::paged_attention<Accuracy>(pith::cuda{}, made.value(), pages, queries.data(), most,
                                        pith::tensor_view<bf16 const, 3, space::device>(asked.data(), {tokens, heads, dk}),
                                        pith::tensor_view<float, 3, space::device>(out.data(), {tokens, heads, dv}),
                                        {.window = window, .lse = pith::tensor_view<float, 2, space::device>(lse.data(), {tokens, heads})});
    if (!test.need(run, "paged_attention")) return;
    std::vector<float> const got = out.values(test), got_lse = lse.values(test);
    double squares = 0, energy = 0, worst_lse = 0;
    for (std::size_t s = 0; s < lengths.size(); ++s)
      for (std::int64_t row = q_indptr[s]; row < q_indptr[s + 1]; ++row)
        for (std::int64_t h = 0; h < heads; ++h) {
          std::size_t const of = s * static_cast<std::size_t>(kv_heads) + static_cast<std::size_t>(h / group);
          std::int64_t const upper = lengths[s] - q_indptr[s + 1] + row + 1,
                             lower = window > 0 ? std::max<std::int64_t>(0, upper - window) : 0;
          std::vector<double> score;
          double peak = -1e300, total = 0;
          for (std::int64_t t = lower; t < upper; ++t) {
            double sum = 0;
            for (int c = 0; c < dk; ++c)
              sum += static_cast<double>(pith::to_float(q[static_cast<std::size_t>((row * heads + h) * dk + c)])) *
                     host.keys[of][static_cast<std::size_t>(t * dk + c)];
            score.push_back(sum / std::sqrt(static_cast<double>(dk)));
            peak = std::max(peak, score.back());
          }
          std::vector<double> expected(dv);
          for (std::size_t i = 0; i < score.size(); ++i) {
            double const p = std::exp(score[i] - peak);
            total += p;
            for (int c = 0; c < dv; ++c)
              expected[static_cast<std::size_t>(c)] +=
                  p * host.values[of][(static_cast<std::size_t>(lower) + i) * dv + static_cast<std::size_t>(c)];
          }
          float const its_lse = got_lse[static_cast<std::size_t>(row * heads + h)];
          if (score.empty())
            test.check(its_lse < -1e30f, "an empty row has lse %f", static_cast<double>(its_lse));
          else
            worst_lse = std::max(worst_lse, std::fabs(its_lse - (peak + std::log(total))));
          for (int c = 0; c < dv; ++c) {
            double const want = score.empty() ? 0.0 : expected[static_cast<std::size_t>(c)] / total,
                         d = got[static_cast<std::size_t>((row * heads + h) * dv + c)] - want;
            squares += d * d, energy += want * want;
          }
        }
    double const rms = energy > 0 ? std::sqrt(squares / energy) : std::sqrt(squares);
    test.check(rms <= most_rms, "round %d: relative error %g", round, rms);
    test.check(worst_lse <= 20 * most_rms, "round %d: lse is off by %g", round, worst_lse);
  }
}

using int4_pages = pith::kv_page<pith::int4<per_token<64>>, pith::int4<per_token<64>>, 128, 128, 64>;
using int8_pages = pith::kv_page<pith::int8<per_token<64>>, pith::int8<per_token<64>>, 128, 128, 64>;
using kivi4_pages = pith::kv_page<pith::int4<per_channel<32>>, pith::int4<per_token<32>>, 128, 128, 64>;
using bf16_pages = pith::kv_page<pith::raw<bf16>, pith::raw<bf16>, 128, 128, 64>;
using rotated_pages = pith::kv_page<pith::pipe<pith::hadamard<64>, pith::int3<per_token<64>>>,
                                    pith::pipe<pith::hadamard<64>, pith::int2<per_token<32>>>, 64, 64, 64>;
using odd_pages = pith::kv_page<pith::block_float<5, per_token<16>>, pith::int8<per_channel<32>>, 80, 96, 32>;

}  // namespace

// What a tensor core loses by truncating sums is not in the emulator's numbers; the limits leave room for it.
DEVICE_CASE("attention: int4, exact") { compare<int4_pages, pith::exact_accuracy>(test, 8, 1e-4); }
DEVICE_CASE("attention: int4, one term") { compare<int4_pages, pith::integer_accuracy>(test, 8, 4e-3); }
DEVICE_CASE("attention: int8, exact") { compare<int8_pages, pith::exact_accuracy>(test, 4, 1e-4); }
DEVICE_CASE("attention: kivi4, exact") { compare<kivi4_pages, pith::exact_accuracy>(test, 4, 1e-4); }
DEVICE_CASE("attention: bf16, one term") { compare<bf16_pages, pith::integer_accuracy>(test, 4, 1e-2); }
DEVICE_CASE("attention: rotated int3 and int2, exact") { compare<rotated_pages, pith::exact_accuracy>(test, 4, 1e-4); }
DEVICE_CASE("attention: block floats and 80 channels, exact") { compare<odd_pages, pith::exact_accuracy>(test, 4, 1e-4); }
DEVICE_CASE("sanitize: attention: kivi4") { compare<kivi4_pages, pith::integer_accuracy>(test, 2, 4e-3); }
