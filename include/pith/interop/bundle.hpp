// SPDX-License-Identifier: Apache-2.0
// What belongs to the same neurons, side by side in a container: one read brings a block of them. Up-projection rows with the
// down-projection's columns of the same neurons, a gate's rows between, or the three matrices of an expert.
//
//   up[n], gate[n], down[:, n] are d numbers each: every section is a matrix [neurons][d], down's the transposed one
//   the tensor     | section 0, neurons 0 .. B - 1 | section 1, the same neurons | ... | section 0, neurons B .. 2 B - 1 | ...
//                  one packed matrix of sections x B x blocks rows and d columns; neurons behind the last are zeros
//   metadata       "bundle.NAME": "sections=up,down neurons=11008 block=64", for the packed tensor NAME
//
//   h = f(x up^T)     section 0: multiply          out += h down     section 1: multiply_transposed     (h of a zero neuron meets zeros)
//
//   bundle const b{{"up", "down"}, neurons, bundle_block(layout_of<Matrix>(), 2, d)};
//   write_bundle<Matrix, bf16>(to, name, "int4<per_token<64>,none>", "BF16", b, sections);
//   to.finish({{bundle_key(name), print(b)}}, std::nullopt);
//   bundle_of(file, *file.find(name));          then stream_part{name, b.first_row(i), b.block_rows(), b.section_count(), layer}
//
// errors  bundle_of     out_of_range: no such metadata; bad_format: a text that print does not write, or of another number of rows;
//                       `at` is the tensor's first byte
//         write_bundle  shape_mismatch, `at` is the section; what the sink says
// cost    up to B - 1 neurons of zeros; write_bundle: one block of numbers and one of packed bytes in memory
// needs   a codec of fixed rate: a run of another lies in two places. One codec for all sections; of use dot or mix, the other product
//         decodes each tile first
// from    LLM in a flash (Alizadeh et al., 2023): rows and columns bundled, reads of 32 KiB or more
#pragma once

#include "pith/interop/any_matrix.hpp"
#include "pith/interop/container_writer.hpp"

namespace pith::container {

inline constexpr std::int64_t least_read_bytes = 32 << 10;  // below it a flash drive is not at full speed
inline constexpr std::string_view bundle_prefix = "bundle.";

struct bundle {
  std::vector<std::string> sections;  // names without commas and spaces
  std::int64_t neurons = 0, block = 0;

  std::int64_t section_count() const noexcept { return std::ssize(sections); }
  std::int64_t blocks() const noexcept { return divide_up(neurons, block); }
  std::int64_t block_rows() const noexcept { return section_count() * block; }  // of the tensor
  std::int64_t first_row(std::int64_t i) const noexcept { return i * block_rows(); }
  std::int64_t rows() const noexcept { return blocks() * block_rows(); }
  friend bool operator==(bundle const&, bundle const&) = default;
};

inline std::string bundle_key(std::string_view name) { return std::string(bundle_prefix) + std::string(name); }

inline std::string print(bundle const& b) {
  std::string out = "sections=";
  for (std::size_t i = 0; i < b.sections.size(); ++i) out += (i > 0 ? "," : "") + b.sections[i];
  return out + " neurons=" + std::to_string(b.neurons) + " block=" + std::to_string(b.block);
}

inline std::optional<bundle> parse_bundle(std::string_view text) {
  bundle b;
  std::string_view const neurons_key = " neurons=", block_key = " block=", sections_key = "sections=";
  std::size_t const neurons_at = text.find(neurons_key), block_at = text.find(block_key);
  if (!text.starts_with(sections_key) || neurons_at == text.npos || block_at == text.npos || block_at < neurons_at + neurons_key.size())
    return std::nullopt;
  std::string_view names = text.substr(sections_key.size(), neurons_at - sections_key.size());
  while (!names.empty()) {
    std::string_view const one = names.substr(0, names.find(','));
    b.sections.emplace_back(one);
    names.remove_prefix(std::min(names.size(), one.size() + 1));
  }
  std::size_t const number_at = neurons_at + neurons_key.size();
  bool const read = detail::parse(text.substr(number_at, block_at - number_at), b.neurons) &&
                    detail::parse(text.substr(block_at + block_key.size()), b.block) && print(b) == text;
  std::int64_t const most = most_elements / std::max<std::int64_t>(1, b.section_count());  // so that rows() can be computed
  bool const whole = read && !b.sections.empty() && b.neurons > 0 && b.block > 0 && b.neurons <= most / 2 && b.block <= most / 2;
  return whole ? std::optional(std::move(b)) : std::nullopt;
}

inline result<bundle> bundle_of(index const& file, entry const& e) {
  for (auto const& [key, text] : file.metadata)
    if (key == bundle_key(e.name)) {
      auto b = parse_bundle(text);
      if (!b || !e.packed || e.packed->rows != b->rows()) return status{errc::bad_format, e.at};
      return std::move(*b);
    }
  return status{errc::out_of_range, e.at};
}

// The fewest neurons, in whole tiles, whose block of all sections is at least so many bytes.
inline std::int64_t bundle_block(tile_layout const& layout, std::int64_t sections, std::int64_t columns,
                                 std::int64_t least_bytes = least_read_bytes) noexcept {
  return layout.tokens * divide_up(least_bytes, sections * layout.fixed_bytes(layout.tokens, columns));
}

// Sections are views [neurons][d]; of a matrix [d][neurons] a view with its strides exchanged.
template <class Matrix, source_scalar T, byte_sink Sink>
status write_bundle(container_writer<Sink>& to, std::string_view name, std::string codec, std::string_view type, bundle const& b,
                    std::span<matrix_view<T const> const> sections, std::int64_t version = 1) {
  constexpr tile_layout layout = layout_of<Matrix>();
  static_assert(!layout.has_tails, "[pith] write_bundle<Matrix, T>: the codec's rate varies. Fix: a codec of fixed rate.");
  PITH_EXPECTS(std::ssize(sections) == b.section_count() && b.neurons > 0 && b.block > 0 && b.block % layout.tokens == 0);
  std::int64_t const columns = sections[0].extent[1];
  for (std::size_t s = 0; s < sections.size(); ++s)
    if (sections[s].extent[0] != b.neurons || sections[s].extent[1] != columns || columns <= 0)
      return {errc::shape_mismatch, static_cast<std::int64_t>(s)};
  auto open = to.begin();
  std::vector<T> numbers(static_cast<std::size_t>(b.block_rows() * columns));
  for (std::int64_t i = 0; i < b.blocks(); ++i) {
    std::ranges::fill(numbers, T{});
    for (std::int64_t s = 0; s < b.section_count(); ++s)
      for (std::int64_t n = 0; n < std::min(b.block, b.neurons - i * b.block); ++n)
        for (std::int64_t c = 0; c < columns; ++c)
          numbers[static_cast<std::size_t>((s * b.block + n) * columns + c)] = sections[static_cast<std::size_t>(s)](i * b.block + n, c);
    auto const packed = Matrix::pack(matrix_view<T const>(numbers.data(), {b.block_rows(), columns}));
    if (!packed) return packed.error();
    if (status const ok = open.write(layout.fixed_bytes(b.first_row(i), columns), packed.value().bytes()); !ok) return ok;
  }
  packing p{std::move(codec),
            version,
            std::string(detail::matrix_parameters<Matrix>::use),
            layout.channels,
            b.rows(),
            columns,
            std::string(type),
            {b.rows(), columns},
            layout.fixed_bytes(b.rows(), columns)};
  to.reserve(open, stored_bytes(p));
  return to.end_packed(open, name, layout, p);
}

}  // namespace pith::container
