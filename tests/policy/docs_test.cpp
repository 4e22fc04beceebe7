// SPDX-License-Identifier: Apache-2.0
// The program of docs/policies.md, as it stands there.
#include <fstream>
#include <string>

#include "support/catch.hpp"

// [snippet:policies]
#include <pith/policy/decide.hpp>
#include <vector>

// One decoding step of one layer with two KV heads of 100 slots: which 64 slots does each keep?
std::vector<std::int64_t> slots_to_keep(std::span<float const> weights /* [head][slot] */, std::span<std::int64_t> counts) {
  pith::keep<pith::top<64, pith::accumulated_attention>, pith::protect<pith::sinks<4>, pith::recent<16>>>::type const policy;
  std::vector<std::int64_t> const offset{0, 100}, length{100, 100};
  std::vector<std::int64_t> kept(200), known(2);
  std::vector<float> score(200);
  std::vector<std::byte> scratch(pith::decide_scratch_bytes(2, 200));
  pith::policy_rows const rows{.layers = 1, .kv_heads = 2, .offset = offset, .length = length};
  pith::policy_state state{.score = score, .known = known};
  pith::policy_plan plan{.kept = kept, .kept_count = counts};
  if (!pith::observe(policy, rows, {.sum = weights, .rows = 1}, state, scratch)) return {};
  if (!pith::decide(policy, rows, {}, state, plan, scratch)) return {};
  return kept;  // of head h: kept[offset[h]] ... counts[h] slots, ascending
}
// [snippet:end]

TEST_CASE("docs/policies.md: its program is this one, and keeps sinks, newest and heaviest slots", "[policy][docs]") {
  std::vector<float> weights(200, 0.0f);
  for (std::size_t s = 20; s < 90; ++s) weights[s] = weights[199 - s] = 0.01f * static_cast<float>(s);
  std::vector<std::int64_t> counts(2);
  auto const kept = slots_to_keep(weights, counts);
  REQUIRE(counts == std::vector<std::int64_t>{64, 64});
  for (std::int64_t s = 0; s < 4; ++s) CHECK(kept[static_cast<std::size_t>(s)] == s);
  CHECK(kept[4] == 40);  // 44 heavy ones: 40 ... 83
  CHECK(kept[63] == 99);

  auto const text = [](char const* name) {
    std::ifstream in(std::string(PITH_SOURCE_DIR) + name);
    return std::string(std::istreambuf_iterator<char>(in), {});
  };
  std::string const own = text("/tests/policy/docs_test.cpp"), page = text("/docs/policies.md");
  std::size_t const first = own.find("// [snippet:policies]\n") + 22, last = own.find("// [snippet:end]", first);
  CHECK(page.find("```cpp\n" + own.substr(first, last - first) + "```\n") != std::string::npos);
}
