// SPDX-License-Identifier: Apache-2.0
#include "codecs.hpp"

#include <algorithm>

#include "codecs_gguf.hpp"

namespace tool {

namespace {

std::vector<codec> const& all_codecs() {
  static std::vector<codec> const all = [] {
    std::vector<codec> to;
    for (auto const& some : {window_codecs(), planes_codecs(), huffman_codecs(), rans_codecs(), integer_codecs()})
      to.insert(to.end(), some.begin(), some.end());
    for (gguf_codec const& c : gguf_codecs()) to.push_back(c.with);
    return to;
  }();
  return all;
}

// What is chosen on the command line: "window" for dynamic_float<bf16,window>, "int8" for int8<per_token<64>,none>. Nothing: only converted
// to.
std::string_view choice_of(codec const& c) {
  if (c.pack == nullptr) return {};
  std::string_view const name = c.name, head = name.substr(0, name.find('<'));
  if (c.rounds) return head;
  std::string_view const last = name.substr(name.find(',') + 1);
  return last.substr(0, last.size() - 1);
}

template <class T>
void widen(std::byte const* from, std::span<float> to) {
  for (std::size_t i = 0; i < to.size(); ++i) to[i] = pith::load_scalar<T>(from + sizeof(T) * i);
}
template <class T>
void narrow(std::span<float const> from, std::byte* to) {
  for (std::size_t i = 0; i < from.size(); ++i) pith::store_scalar(to + sizeof(T) * i, pith::from_float<T>(from[i]));
}

}  // namespace

std::byte* scratch::of(std::int64_t bytes, std::int64_t kept) {
  if (bytes > memory_.bytes()) {
    auto larger = pith::heap_arena::make(bytes + bytes / 4);
    if (!larger) throw std::bad_alloc();
    std::copy_n(memory_.data(), kept, larger.value().data());
    memory_ = std::move(larger).value();
  }
  return memory_.data();
}

std::vector<std::string_view> const& codec_choices() {
  static std::vector<std::string_view> const all = [] {
    std::vector<std::string_view> to;
    for (codec const& c : all_codecs())
      if (c.pack != nullptr && std::ranges::find(to, choice_of(c)) == to.end()) to.push_back(choice_of(c));
    return to;
  }();
  return all;
}

double stored_numbers(codec const& with, std::int64_t rows, std::int64_t columns) {
  auto const tiles = static_cast<double>(with.layout.row_blocks(rows)) * static_cast<double>(with.layout.panels(columns));
  return tiles * (static_cast<double>(with.layout.tokens) * with.panel + 60);  // a lossless tile's head and tail: some 80 bytes
}

codec const* choose_codec(std::string_view choice, std::string_view type, std::int64_t rows, std::int64_t columns) {
  codec const* best = nullptr;
  for (codec const& c : all_codecs()) {
    bool const takes = c.type == type || (c.rounds && (type == "BF16" || type == "F16"));
    if (takes && choice_of(c) == choice && (best == nullptr || stored_numbers(c, rows, columns) < stored_numbers(*best, rows, columns)))
      best = &c;
  }
  return best;
}
codec const* find_codec(std::string_view name, std::int64_t panel) {
  for (codec const& c : all_codecs())
    if (c.name == name && c.panel == panel) return &c;
  return nullptr;
}

bool to_floats(std::string_view type, std::byte const* from, std::span<float> to) {
  if (type == "BF16") return widen<pith::bf16>(from, to), true;
  if (type == "F16") return widen<pith::f16>(from, to), true;
  if (type == "F32") return widen<float>(from, to), true;
  return false;
}
bool from_floats(std::string_view type, std::span<float const> from, std::byte* to) {
  if (type == "BF16") return narrow<pith::bf16>(from, to), true;
  if (type == "F16") return narrow<pith::f16>(from, to), true;
  if (type == "F32") return narrow<float>(from, to), true;
  return false;
}

}  // namespace tool
