// SPDX-License-Identifier: Apache-2.0
#include "retrieval.hpp"

#include "retrieval_by_attention.hpp"
#include "retrieval_by_keys.hpp"

namespace example {

namespace {

using pith::stage;

// Half of the model's KV heads read pages, so many that all heads read C slots on average.
std::unique_ptr<retriever> lserve(retrieval_input const& in) {
  pith::recipes::lserve<> policy;
  std::int64_t const capacity = in.at.capacity(), sinks = capacity / 16, recent = capacity / 8;
  policy.at<stage::protect>().at<pith::sinks<128>>().slots = sinks;
  policy.at<stage::protect>().at<pith::recent<256>>().slots = recent;
  policy.at<stage::head_split>().full = 2 * (capacity - sinks - recent);
  std::vector<double> order(in.at.retrieval.begin(), in.at.retrieval.end()), table;
  std::sort(order.rbegin(), order.rend());
  for (double const x : in.at.retrieval) table.push_back(x >= order[order.size() / 2 - 1]);
  return std::make_unique<by_boxes<pith::recipes::lserve<>>>(policy, 64, 4, std::move(table), in);
}

// The paper's watershed is a number of the model; here it is the layer whose attention repeats most what followed earlier.
int watershed(retrieval_input const& in) {
  auto const best = std::max_element(in.at.retrieval.begin(), in.at.retrieval.end());
  return static_cast<int>((best - in.at.retrieval.begin()) / in.at.kv_heads);
}

// A policy that reads as many slots as the budget allows.
template <class Policy>
Policy reading(retrieval_input const& in) {
  Policy policy;
  policy.template at<stage::total>().tokens = in.at.capacity();
  return policy;
}

}  // namespace

std::vector<method> retrieving_methods() {
  using namespace pith::recipes;
  return {
      {.name = "Quest",
       .paper = "reads 1024 to 4096, pages of 16, two dense layers",
       .here = "reads C, pages of 16, no dense layer",
       .retrieve = [](retrieval_input const& in) -> std::unique_ptr<retriever> {
         return std::make_unique<by_boxes<quest<>>>(reading<quest<>>(in), 16, 1, std::vector<double>{}, in);
       }},
      {.name = "LServe",
       .paper = "reads 4096, pages of 64 with 4 boxes, half of the heads a stream of 128 and 256, 4 steps a list",
       .here = "reads C on average, pages of 64 with 4 boxes, half of the heads a stream of C/16 and C/8, 4 steps a list",
       .retrieve = &lserve},
      {.name = "TokenSelect",
       .paper = "reads 2048 and 128 first and 512 newest, list kept while cos >= 0.9",
       .here = "reads C of which C/16 first and C/4 newest, list kept while cos >= 0.9",
       .retrieve = [](retrieval_input const& in) -> std::unique_ptr<retriever> {
         auto policy = reading<token_select<>>(in);
         policy.at<stage::protect>().at<pith::sinks<128>>().slots = in.at.capacity() / 16;
         policy.at<stage::protect>().at<pith::recent<512>>().slots = in.at.capacity() / 4;
         return std::make_unique<by_votes>(policy, in);
       }},
      {.name = "Round Attention",
       .paper = "rounds by the watershed layer, deeper layers' rows on the host",
       .here = "lines of about 64 bytes, by the layer where a probe finds retrieval; those behind it read C and lie on the host",
       .retrieve = [](retrieval_input const& in) -> std::unique_ptr<retriever> {
         return std::make_unique<by_rounds>(reading<round_attention<>>(in), watershed(in), in);
       }},
      {.name = "LouisKV",
       .paper = "16 tokens a cluster, chosen again at drift below 0.7, rows on the host",
       .here = "reads C of which 4 first and C/8 newest, 16 tokens a cluster, drift below 0.7, rows on the host",
       .retrieve = [](retrieval_input const& in) -> std::unique_ptr<retriever> {
         auto policy = reading<louis_kv<>>(in);
         policy.at<stage::protect>().at<pith::sinks<16>>().slots = 4;
         policy.at<stage::protect>().at<pith::recent<64>>().slots = in.at.capacity() / 8;
         return std::make_unique<by_clusters>(policy, in);
       }},
      {.name = "SpeCache",
       .paper = "1 to 2 bits on the device, up to 256 slots of the host's 16-bit rows",
       .here = "KIVI 2 on the device, C slots of the host's bf16 rows, the guess always right",
       .retrieve = [](retrieval_input const& in) -> std::unique_ptr<retriever> {
         return std::make_unique<by_few_bits>(reading<spe_cache<>>(in), in);
       }},
      {.name = "InstInfer",
       .paper = "reads 1/8, scores from some channels, in the drive",
       .here = "reads C, scores from 16 of 64 channels",
       .retrieve = [](retrieval_input const& in) -> std::unique_ptr<retriever> {
         return std::make_unique<by_channels>(reading<inst_infer<>>(in), in);
       }},
  };
}

}  // namespace example
