// SPDX-License-Identifier: Apache-2.0
#include "method.hpp"

#include "pith/policy/recipes.hpp"
#include "pith/policy/recipes_state.hpp"
#include "retrieval.hpp"

namespace example {

namespace {

using pith::stage;

template <class T>
inline constexpr bool counts_steps = false;
template <std::int64_t Steps>
inline constexpr bool counts_steps<pith::ignored_count<Steps>> = true;
template <>
inline constexpr bool counts_steps<pith::last_use> = true;
template <>
inline constexpr bool counts_steps<pith::use_count> = true;

// Whether a policy's losers or its selection ask for keys.
template <class Dispose>
inline constexpr bool looks_at_keys = false;
template <class Route, class Weight>
inline constexpr bool looks_at_keys<pith::merge<Route, Weight>> =
    std::is_same_v<Route, pith::most_similar> || std::is_same_v<Route, pith::own_run> || std::is_same_v<Weight, pith::by_distance>;

template <class Policy>
class run_of final : public policy_run {
  template <stage Kind>
  using type = typename Policy::template stage_type<Kind>;
  static constexpr bool once =
      std::is_same_v<type<stage::trigger>, pith::on_prefill_end> || std::is_same_v<type<stage::trigger>, pith::on_layer_done> || requires {
    type<stage::signal>::weighs_rows;
  };  // Finch's question comes once

 public:
  run_of(Policy const& policy, setting const& s) : policy_(policy) {
    what = {.query_rows = type<stage::signal>::query_rows,
            .given = std::is_same_v<type<stage::signal>, pith::given_scores>,
            .maximum = std::is_same_v<type<stage::signal>, pith::maximum_attention>,
            .replayed = counts_steps<type<stage::scorer>>,
            .decodes = !once,
            .by_content = looks_at_keys<type<stage::dispose>> || std::is_same_v<type<stage::select>, pith::best_runs>,
            .weighted_rows = requires {type<stage::signal>::weighs_rows;
  }
  , .two_sums = requires { type<stage::signal>::has_two_sums; }
  , .by_value = std::is_same_v<type<stage::select>, pith::best_twice>, .losers = type<stage::dispose>::losers
};
if constexpr (type<stage::dispose>::losers == pith::fate::spread) what.next = type<stage::dispose>::next;
layers_by_column_sums = std::is_same_v<type<stage::layer_split>, pith::variance_layers>;
auto const slots = static_cast<std::size_t>(s.rows() * s.most_slots);
score_.resize(slots), history_.resize(slots* type<stage::scorer>::history_words), known_.resize(static_cast<std::size_t>(s.rows()));
scratch_.resize(static_cast<std::size_t>(pith::decide_scratch_bytes(s.rows(), s.rows() * s.most_slots) +
                                         pith::observe_scratch_bytes(s.most_slots)));
state_ = {.score = score_, .history = history_, .known = known_};
}  // namespace

bool due(pith::trigger_input at) const override {
  if constexpr (requires { policy_.template at<stage::total>().tokens; }) at.capacity = policy_.template at<stage::total>().tokens;
  return policy_.due(at);
}
pith::status observe(pith::policy_rows const& at, pith::policy_statistics const& in) override {
  state_.known = std::span(known_).first(static_cast<std::size_t>(at.rows()));
  return pith::observe(policy_, at, in, state_, scratch_);
}
pith::status decide(pith::policy_rows const& at, pith::policy_input const& in, pith::policy_plan& plan) override {
  return pith::decide(policy_, at, in, state_, plan, scratch_);
}
void carry(pith::policy_rows const& at, pith::policy_plan const& plan) override { pith::carry(policy_, at, plan, state_); }

private:
Policy policy_;
std::vector<float> score_;
std::vector<std::uint64_t> history_;
std::vector<std::int64_t> known_;
std::vector<std::byte> scratch_;
pith::policy_state state_;
};  // namespace example

// A policy whose capacity is the budget's; more(policy, setting) sets what else depends on it.
template <class Policy, class More>
method::starter with(More more) {
  return [more](setting const& s) -> std::unique_ptr<policy_run> {
    Policy policy;
    if constexpr (requires { policy.template at<stage::total>().tokens; }) policy.template at<stage::total>().tokens = s.capacity();
    if constexpr (requires { policy.template at<stage::total>().bytes; })  // as many as the budget's bf16 tokens take
      policy.template at<stage::total>().bytes = s.capacity() * token_bits(storage::bf16) / 8;
    more(policy, s);
    return std::make_unique<run_of<Policy>>(policy, s);
  };
}
template <class Policy>
method::starter with() {
  return with<Policy>([](Policy&, setting const&) {});
}

// Attention to what followed the same byte earlier makes a head a retrieval head: as many of the best as the budget has room for, at most
// `heads`, with `least` slots left to each of the others.
std::unique_ptr<policy_run> razor(setting const& s, std::int64_t heads, std::int64_t least) {
  pith::recipes::razor_attention<4000> policy;
  std::int64_t const all = s.rows() * s.capacity();
  while (heads > 0 && heads * s.tokens + (s.rows() - heads) * least > all) --heads;
  auto& stream = policy.at<stage::head_split>().stream;
  stream = s.rows() > heads ? (all - heads * s.tokens) / (s.rows() - heads) - 5 : 0;  // beside 4 sinks and the slot of what has left
  auto run = std::make_unique<run_of<pith::recipes::razor_attention<4000>>>(policy, s);
  run->head_table.assign(static_cast<std::size_t>(s.rows()), 0.0);
  std::vector<double> order(s.retrieval.begin(), s.retrieval.end());
  std::sort(order.rbegin(), order.rend());
  for (std::size_t r = 0; r < order.size(); ++r)
    if (heads > 0 && s.retrieval[r] >= order[static_cast<std::size_t>(heads - 1)]) run->head_table[r] = 1;
  return run;
}

// The heads' retrieval scores share the layer out, over a floor of 20 % of an even share.
std::unique_ptr<policy_run> head_kv(setting const& s) {
  auto run = with<pith::recipes::head_kv<1024, 32>>()(s);
  for (std::int64_t l = 0; l < s.layers; ++l) {
    double sum = 0;
    auto const heads = s.retrieval.subspan(static_cast<std::size_t>(l * s.kv_heads), static_cast<std::size_t>(s.kv_heads));
    for (double const x : heads) sum += x;
    for (double const x : heads) run->head_table.push_back(0.2 / static_cast<double>(s.kv_heads) + 0.8 * x / sum);
  }
  return run;
}

std::vector<method> list() {
  using namespace pith::recipes;
  using pith::recent, pith::stage;
  using newest_only = pith::policy<pith::every_step, pith::capacity<1024>, pith::newest>;
  using elastic = elastic_cache<1024>;
  using least_recent = attendre_lra<1024>;
  using heavy_hitters = h2o<1024, 512>;
  using decode_part = scope<512, 256>;
  using ignored = scissorhands<1024, 10, 64>;
  using merging = d2o<1024, 512>;
  using runs = kv_merger<1024, 256>;
  using spreading = cam<1024, 512, 32>;
  using least_often = attendre_lfa<1024>;
  using precise = mikv<1024, 4, 512>;
  using pruned_snapkv = quantized_pruning<1024, 1024, pith::on_prefill_end, pith::window_attention<32>, pith::average_pool<5>,
                                          pith::protect<pith::window<32>>, pith::best>;
  using pruned_h2o =
      quantized_pruning<1024, 1024, pith::every_step, pith::all_attention, pith::accumulate, pith::protect<recent<512>>, pith::best>;
  auto const in_int4 = [](auto& p, setting const&) { p.template at<stage::total>().token_bits = token_bits(storage::int4); };
  auto const in_int8 = [](auto& p, setting const&) { p.template at<stage::total>().token_bits = token_bits(storage::int8); };
  auto const half_recent = [](auto& p, setting const& s) {
    p.template at<stage::protect>().template at<recent<512>>().slots = s.capacity() / 2;
  };
  return {
      {.name = "full cache", .crossed = true},
      {.name = "newest only", .here = "C", .start = with<newest_only>()},
      {.name = "StreamingLLM",
       .paper = "C 512 to 2000, 4 sinks, positions in the cache",
       .here = "C, 4 sinks, positions kept",
       .start = with<streaming_llm<>>(),
       .crossed = true},
      {.name = "LM-Infinite",
       .paper = "C 2048 or 4096, 10 to 100 sinks, distances up to C",
       .here = "C, 10 sinks, positions kept: none is farther back than was trained",
       .start = with<lm_infinite<4096, 10>>()},
      {.name = "H2O", .paper = "C 20 %, half recent", .here = "C, half recent", .start = with<heavy_hitters>(half_recent), .crossed = true},
      {.name = "Scissorhands",
       .paper = "C, half dropped at once, 400 steps, 10 recent",
       .here = "C, half dropped at once, 64 steps, 10 recent",
       .start = with<ignored>([](auto& p, setting const& s) {
         p.template at<stage::total>().tokens = s.capacity() / 2;
         p.template at<stage::trigger>().slack = s.capacity() / 2;
       })},
      {.name = "TOVA", .paper = "C 512 of 4096", .here = "C, newest protected", .start = with<tova<>>(), .crossed = true},
      {.name = "SnapKV", .paper = "C 2048, W 32, pool 5", .here = "C, W 32, pool 5", .start = with<snapkv<>>(), .crossed = true},
      {.name = "PyramidKV", .paper = "C 2048, W 8, beta 20", .here = "C, W 32, beta 20", .start = with<pyramid_kv<2048, 32>>()},
      {.name = "Ada-KV",
       .paper = "C 1024, W 32, pool 7, floor 0.2",
       .here = "C, W 32, pool 7, floor 0.2",
       .start = with<ada_kv<>>(),
       .crossed = true},
      {.name = "CriticalKV",
       .paper = "half by score, half by score times value, on SnapKV or Ada-KV",
       .here = "C, on SnapKV with W 32, pool 5",
       .start = with<critical_kv<>>()},
      {.name = "HeadKV",
       .paper = "C 1024, W 32, heads by retrieval and reasoning",
       .here = "C, W 32, heads by a probe of repeated bytes",
       .start = &head_kv},
      {.name = "CAKE",
       .paper = "C 1024, W 32, gamma 200, layer by layer",
       .here = "C, W 32, gamma 200, all layers at the end",
       .start = with<cake<>>()},
      {.name = "ZigZagKV", .paper = "C, 90 % of mass", .here = "C, W 32, 90 % of mass, floor 0.15", .start = with<zigzag_kv<>>()},
      {.name = "SCOPE",
       .paper = "prompt 2048, decoded 512 of which 256 recent",
       .here = "prompt 3/4 C by SnapKV, decoded 1/4 C of which half recent",
       .start = with<decode_part>(
           [](auto& p, setting const& s) { p.template at<stage::protect>().template at<recent<256>>().slots = s.capacity() / 8; }),
       .start_of_prompt = with<snapkv<>>([](auto& p, setting const& s) { p.template at<stage::total>().tokens = s.capacity() * 3 / 4; })},
      {.name = "SirLLM",
       .paper = "C 1024, 4 sinks, positions in the cache",
       .here = "C, 4 sinks, positions kept",
       .start = with<sirllm<>>()},
      {.name = "Finch",
       .paper = "C, chunk by chunk, the question's rows, positions in the cache",
       .here = "C, the context at once, the last 32 rows, positions kept",
       .start = with<finch<>>()},
      {.name = "RazorAttention",
       .paper = "15 % of heads full, others 4000, 4 sinks",
       .here = "at most 2 of 12 heads full, others what is left, 4 sinks",
       .start = [](setting const& s) { return razor(s, 2, 32); },
       .biased = true},
      {.name = "LaCache",
       .paper = "C, span 16 of 32 layers, positions in the cache",
       .here = "C, span 3 of 6 layers, positions kept",
       .start = with<lacache<1024, 3, 0>>()},
      {.name = "WindowKV",
       .paper = "C 1024, W 32, windows of 8, 8 layers share",
       .here = "C, W 32, windows of 8, 2 layers share",
       .start = with<window_kv<1024, 32, 2>>()},
      {.name = "KVzip",
       .paper = "30 % of all heads' tokens, 2048 repeated at once",
       .here = "C of all heads' tokens, the context repeated at once",
       .start = with<kvzip<>>([](auto& p, setting const& s) { p.template at<stage::total>().ratio = s.budget; }),
       .crossed = true},
      {.name = "Attendre LRA",
       .paper = "memory 2048, chunks, top k is a use",
       .here = "C, chunks of 16, p above 1/T is a use",
       .start = with<least_recent>(
           [](auto& p, setting const& s) { p.template at<stage::scorer>().threshold = 1.0f / static_cast<float>(s.tokens); })},
      {.name = "Attendre LFA",
       .paper = "memory 2048, chunks, top k is a use",
       .here = "C, chunks of 16, p above 1/T is a use",
       .start = with<least_often>(
           [](auto& p, setting const& s) { p.template at<stage::scorer>().threshold = 1.0f / static_cast<float>(s.tokens); })},
      {.name = "D2O",
       .paper = "C 20 %, half recent, moving gate",
       .here = "C, half recent, 4 sinks, gate open",
       .start = with<merging>(half_recent),
       .biased = true},
      {.name = "Elastic Cache",
       .paper = "20 %, then a hole 25 from the end",
       .here = "C, at the end of the prompt alone",
       .start = with<elastic>(),
       .biased = true},
      {.name = "KVMerger",
       .paper = "runs of cosine 0.75 or the model's, recent and heavy ones apart, not the first and last two layers",
       .here = "C, a quarter recent, a quarter of the rest heavy, as many runs as fit, all layers",
       .start = with<runs>(
           [](auto& p, setting const& s) { p.template at<stage::protect>().template at<recent<256>>().slots = s.capacity() / 4; }),
       .biased = true},
      {.name = "EMS",
       .paper = "C 256, global and local sums, counts by sparsity and redundancy",
       .here = "C, W 32, the larger sum, counts by score, cosine 0.6",
       .start = with<ems<>>(),
       .biased = true},
      {.name = "CaM",
       .paper = "10 % first and recent, 32 slots take",
       .here = "C, half recent, 32 slots take, of what goes while decoding",
       .start = with<spreading>(half_recent)},
      {.name = "MiKV",
       .paper = "H2O's scores; 20 to 25 % as they are, others 2 to 4 bits",
       .here = "C in bf16, half recent, all others in int4 or int2",
       .start = with<precise>(half_recent),
       .only = {storage::demoting_int4, storage::demoting_int2}},
      {.name = "SnapKV, bytes 8",
       .paper = "4 bits and 4 times the tokens",
       .here = "as many int8 tokens as C bf16 ones take bytes",
       .start = with<pruned_snapkv>(in_int8),
       .only = {storage::int8}},
      {.name = "SnapKV, bytes 4",
       .paper = "4 bits and 4 times the tokens",
       .here = "as many int4 tokens as C bf16 ones take bytes",
       .start = with<pruned_snapkv>(in_int4),
       .only = {storage::int4}},
      {.name = "H2O, bytes 4",
       .paper = "4 bits and 4 times the tokens",
       .here = "as many int4 tokens as C bf16 ones take bytes, half recent",
       .start = with<pruned_h2o>([in_int4](auto& p, setting const& s) {
         in_int4(p, s);
         p.template at<stage::protect>().template at<recent<512>>().slots = s.capacity() / 2;
       }),
       .only = {storage::int4}},
      {.name = "SubGen",
       .paper = "recent window, clusters by an offline k-centre",
       .here = "C newest; the rest 16 clusters of delta 4, one sample each, reservoir 16, its mean",
       .start = with<subgen<>>(),
       .only = {storage::folding}},
      {.name = "MiniCache",
       .paper = "upper half of the layers, in pairs, t 0.6, gamma 0.05, 4 bits",
       .here = "layers 5 and 6 of 6, t 0.6, gamma 0.05",
       .only = {storage::paired_bf16, storage::paired_int4}},
  };
}

}  // namespace

std::vector<method> const& all_methods() {
  static std::vector<method> const all = [] {
    std::vector<method> out = list();
    for (method& m : retrieving_methods()) out.push_back(std::move(m));
    return out;
  }();
  return all;
}

}  // namespace example
