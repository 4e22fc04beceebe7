// SPDX-License-Identifier: Apache-2.0
// What paged_attention refuses, and that it then writes nothing; pages far apart in memory.
#include <functional>

#include "cpu/attention_oracle.hpp"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace {

using namespace pith;
using namespace pith_test;
using page = kv_page<int4<per_token<64>>, int4<per_token<64>>, 64, 64, 32>;

// A right call of two sequences with two KV heads and four query heads, to be spoilt.
struct call {
  paged_case<page> pages{{40, 0, 32}, 2, 1};
  std::vector<std::int64_t> q_indptr{0, 2, 3, 6};
  std::vector<float> q = std::vector<float>(6 * 4 * 64, 0.25f), out = std::vector<float>(6 * 4 * 64, -77.0f),
                     lse = std::vector<float>(6 * 4, -77.0f);
  paged_view<page> view = pages.view();
  tensor_view<float const, 3> q_view{q.data(), {6, 4, 64}};
  tensor_view<float, 3> out_view{out.data(), {6, 4, 64}};
  attention_options options{.lse = tensor_view<float, 2>(lse.data(), {6, 4})};
  std::vector<float> numbers;  // whatever a spoiler needs

  status run() { return paged_attention(cpu{}, view, q_indptr, q_view, out_view, options); }
  std::size_t written() const {
    std::size_t sum = 0;
    for (float x : out) sum += x != -77.0f;
    for (float x : lse) sum += x != -77.0f;
    return sum;
  }
};

void refused(char const* what, errc code, std::function<void(call&)> spoil) {
  INFO(what);
  call one;
  spoil(one);
  CHECK(one.run().code == code);
  CHECK(one.written() == 0);
}

}  // namespace

TEST_CASE("paged_attention: the call that the others spoil is right, and writes everything", "[cpu][status]") {
  call one;
  CHECK(one.run() == status{});
  CHECK(one.written() == one.out.size() + one.lse.size());
}

TEST_CASE("paged_attention: refuses broken tables and writes nothing", "[cpu][status]") {
  refused("indptr falls", errc::shape_mismatch, [](call& c) { c.pages.indptr = {0, 2, 1, 3}; });
  refused("indptr ends behind the indices", errc::shape_mismatch, [](call& c) { c.pages.indptr = {0, 2, 2, 4}; });
  refused("indptr starts below zero", errc::shape_mismatch, [](call& c) { c.pages.indptr[0] = -1; });
  refused("indptr is short", errc::shape_mismatch, [](call& c) { c.view.indptr = c.view.indptr.first(3); });
  refused("indptr is empty", errc::shape_mismatch, [](call& c) { c.view.indptr = {}; });
  refused("an index is not a block", errc::out_of_range, [](call& c) { c.pages.indices[2] = static_cast<std::uint32_t>(c.view.blocks); });
  refused("an index is 2^32 - 1", errc::out_of_range, [](call& c) { c.pages.indices[0] = 0xffffffffu; });
  refused("the last page is empty", errc::out_of_range, [](call& c) { c.pages.last_page_len[0] = 0; });
  refused("the last page is too long", errc::out_of_range, [](call& c) { c.pages.last_page_len[2] = 33; });
  refused("the last page is negative", errc::out_of_range, [](call& c) { c.pages.last_page_len[2] = -1; });
  refused("tokens without a page", errc::out_of_range, [](call& c) { c.pages.last_page_len[1] = 1; });
  refused("no KV heads", errc::shape_mismatch, [](call& c) { c.view.kv_heads = 0; });
  refused("a short bias", errc::shape_mismatch, [](call& c) {
    c.numbers.resize(2 * 95);
    c.view.bias = tensor_view<float const, 2>(c.numbers.data(), {2, 95});
  });
  refused("a bias for other heads", errc::shape_mismatch, [](call& c) {
    c.numbers.resize(3 * 96);
    c.view.bias = tensor_view<float const, 2>(c.numbers.data(), {3, 96});
  });
}

TEST_CASE("paged_attention: says which sequence or index is wrong", "[cpu][status]") {
  call falls;
  falls.pages.indptr = {0, 2, 1, 3};
  CHECK(falls.run() == status{errc::shape_mismatch, 1});
  call index;
  index.pages.indices[2] = 1000;
  CHECK(index.run() == status{errc::out_of_range, 2});
  call length;
  length.pages.last_page_len[2] = 33;
  CHECK(length.run() == status{errc::out_of_range, 2});
}

TEST_CASE("paged_attention: refuses addresses and strides that the layout does not allow", "[cpu][status]") {
  refused("base is off by 32", errc::misaligned, [](call& c) { c.view.base += 32; });
  refused("block stride is off by 4", errc::misaligned, [](call& c) { c.view.block_stride += 4; });
  refused("head stride is off by 16", errc::misaligned, [](call& c) { c.view.head_stride += 16; });
  refused("heads overlap", errc::shape_mismatch, [](call& c) { c.view.head_stride = page::bytes - 64; });
  refused("blocks overlap", errc::shape_mismatch, [](call& c) { c.view.block_stride = page::bytes - 64; });
}

TEST_CASE("paged_attention: refuses queries, outputs and options that do not fit", "[cpu][status]") {
  refused("query channels", errc::shape_mismatch, [](call& c) { c.q_view.extent[2] = 63; });
  refused("three query heads on two KV heads", errc::shape_mismatch,
          [](call& c) { c.q_view.extent[1] = c.out_view.extent[1] = c.options.lse.extent[1] = 3; });
  refused("no query heads", errc::shape_mismatch, [](call& c) { c.q_view.extent[1] = c.out_view.extent[1] = c.options.lse.extent[1] = 0; });
  refused("output tokens", errc::shape_mismatch, [](call& c) { c.out_view.extent[0] = 5; });
  refused("output heads", errc::shape_mismatch, [](call& c) { c.out_view.extent[1] = 2; });
  refused("output channels", errc::shape_mismatch, [](call& c) { c.out_view.extent[2] = 32; });
  refused("too few sinks", errc::shape_mismatch, [](call& c) {
    c.numbers.resize(3);
    c.options.sink_logits = c.numbers;
  });
  refused("short lse", errc::shape_mismatch, [](call& c) { c.options.lse.extent[0] = 5; });
  refused("lse of other heads", errc::shape_mismatch, [](call& c) { c.options.lse.extent[1] = 2; });
  refused("negative soft cap", errc::out_of_range, [](call& c) { c.options.soft_cap = -1; });
  refused("negative scale", errc::out_of_range, [](call& c) { c.options.scale = -0.1f; });
  refused("negative window", errc::out_of_range, [](call& c) { c.options.window = -1; });
  refused("q_indptr is short", errc::shape_mismatch, [](call& c) { c.q_indptr = {0, 2, 3}; });
  refused("q_indptr is empty", errc::shape_mismatch, [](call& c) { c.q_indptr = {}; });
  refused("q_indptr starts at one", errc::shape_mismatch, [](call& c) { c.q_indptr[0] = 1; });
  refused("q_indptr falls", errc::shape_mismatch, [](call& c) { c.q_indptr = {0, 3, 2, 6}; });
  refused("q_indptr ends behind the queries", errc::shape_mismatch, [](call& c) { c.q_indptr[3] = 7; });
}

TEST_CASE("paged_attention: refuses more queries than tokens, which cannot be the newest", "[cpu][status]") {
  refused("33 queries of 32 tokens", errc::out_of_range, [](call& c) {
    c.numbers.assign(36 * 4 * 64, -77.0f);
    c.q_view = tensor_view<float const, 3>(c.numbers.data(), {36, 4, 64});
    c.out_view = tensor_view<float, 3>(c.numbers.data(), {36, 4, 64});
    c.options.lse = {};
    c.q_indptr = {0, 2, 3, 36};
  });
}

TEST_CASE("paged_attention: no sequences, and no queries, are legal", "[cpu][status]") {
  call none;
  std::vector<std::int64_t> const zero{0};
  none.view.indptr = zero, none.view.last_page_len = {};
  none.q_indptr = {0};
  CHECK(none.run() == status{});
  CHECK(none.written() == 0);
  call silent;
  silent.q_indptr = {0, 0, 0, 0};
  CHECK(silent.run() == status{});
  CHECK(silent.written() == 0);
}

#if defined(__linux__)
// Reserves addresses, not memory; two pages of it are touched.
TEST_CASE("paged_attention: pages beyond 4 GiB, by stride or by index, are addressed in 64 bits", "[cpu][overflow]") {
  std::size_t const size = std::size_t{10} << 30;
  void* const reserved = mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (reserved == MAP_FAILED) {
    WARN("10 GiB of addresses could not be reserved");
    return;
  }
  paged_case<page> const near({40}, 2, 8);  // its pages are copied to where the far view looks for them
  std::vector<std::int64_t> const q_indptr{0, 2};
  random_bits random(9);
  std::vector<float> q(2 * 4 * 64), expected(q.size());
  for (float& x : q) x = gaussian(random);
  REQUIRE(paged_attention(cpu{}, near.view(), q_indptr, tensor_view(q.data(), {2, 4, 64}), tensor_view(expected.data(), {2, 4, 64})));

  auto const compare = [&](std::int64_t block_stride, std::int64_t head_stride, std::vector<std::uint32_t> indices) {
    paged_view<page> far = near.view();
    far.base = static_cast<std::byte*>(reserved);
    far.block_stride = block_stride, far.head_stride = head_stride;
    far.blocks = std::max(indices[0], indices[1]) + std::int64_t{1};
    far.indices = indices;
    for (std::int64_t i = 0; i < 2; ++i)
      for (int head = 0; head < 2; ++head) {
        std::int64_t const at = indices[static_cast<std::size_t>(i)] * block_stride + head * head_stride, begin = at / 4096 * 4096;
        std::byte* const to = static_cast<std::byte*>(reserved) + at;
        REQUIRE(mprotect(static_cast<std::byte*>(reserved) + begin, static_cast<std::size_t>(at - begin + page::bytes),
                         PROT_READ | PROT_WRITE) == 0);
        std::memcpy(to, near.view().address(i, head), page::bytes);
      }
    std::vector<float> out(q.size());
    CHECK(paged_attention(cpu{}, far, q_indptr, tensor_view(q.data(), {2, 4, 64}), tensor_view(out.data(), {2, 4, 64})) == status{});
    CHECK(out == expected);
  };
  SECTION("a block stride of 5 GiB and a head stride of 4.5 GiB") { compare(std::int64_t{5} << 30, std::int64_t{9} << 29, {1, 0}); }
  SECTION("all blocks of one head together, the heads 5 GiB apart") { compare(page::bytes, std::int64_t{5} << 30, {1, 0}); }
  SECTION("block 150000 of 64 KiB each") { compare(65536, 32768, {150000, 7}); }
  munmap(reserved, size);
}
#endif
