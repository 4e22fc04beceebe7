// SPDX-License-Identifier: Apache-2.0
// Reads a file of packed tensors (container.hpp): from memory, or by ranges from anything that has bytes at places, however large.
//
//   container::memory_source const from{mapped};                             or any byte_source
//   auto const file = container::open(from).value();                         header and checksums are read and checked
//   container::entry const* const e = file.find("model.layers.0.mlp.up_proj.weight");
//   container::verify(from, file, *e);                                       every block of one tensor; without e: of the file
//   auto const w = packed_matrix<...>::open(from.bytes.subspan(e->at, e->packed->bytes), e->packed->rows, e->packed->columns);
//   container::read_run(from, *e, layout, first_row, rows, memory);          some rows alone, as a packed matrix of their own
//
// errors  open       those of container.hpp, and what the source says
//         verify     damaged: a block's sum is another, `at` is its first byte in the file; bad_format: padding that is not zero, at its
//                    byte. file.owner(at) names what it belongs to
//         read_run   bad_format: tails that are not where they belong, `at` is a byte of the file; capacity_exceeded: memory is too small
// cost    verify: one pass over the bytes, in pieces of one block; read_run: the rows' bytes and no more. open reads header and table
#pragma once

#include "pith/interop/container.hpp"
#include "pith/linear/packed_rows.hpp"

namespace pith::container {

// Rule S1  size() is the bytes there are; read(at, to) fills `to` from byte `at` on, and is only called within them.
// Rule S2  calls may be made at the same time.
template <class S>
concept byte_source = requires(S const& s, std::int64_t at, std::span<std::byte> to) {
  { s.size() } -> std::same_as<std::int64_t>;
  { s.read(at, to) } -> std::same_as<status>;
};

struct memory_source {
  std::span<std::byte const> bytes;

  std::int64_t size() const noexcept { return std::ssize(bytes); }
  status read(std::int64_t at, std::span<std::byte> to) const noexcept {
    std::copy_n(bytes.data() + at, to.size(), to.data());
    return {};
  }
};
static_assert(byte_source<memory_source>);

template <byte_source Source>
result<std::vector<std::byte>> read_bytes(Source const& from, std::int64_t at, std::int64_t count) {
  std::vector<std::byte> out(static_cast<std::size_t>(count));
  if (status const ok = from.read(at, out); !ok) return ok;
  return out;
}

// The header of any safetensors file, with its length in front.
template <byte_source Source>
result<std::vector<std::byte>> read_header(Source const& from) {
  if (from.size() < 8) return status{errc::truncated, from.size()};
  auto const length = read_bytes(from, 0, 8);
  if (!length) return length.error();
  auto const stated = load_le<std::uint64_t>(length.value().data());
  if (stated > static_cast<std::uint64_t>(safetensors::longest_header)) return status{errc::unsupported, 0};
  if (stated > static_cast<std::uint64_t>(from.size() - 8)) return status{errc::truncated, from.size()};
  return read_bytes(from, 0, 8 + static_cast<std::int64_t>(stated));
}

// Without an ending a file says by its header what it is: shortened, another safetensors file, or none.
template <byte_source Source>
status without_ending(Source const& from, status const& found) {
  auto const head = read_header(from);
  if (!head) return head.error();
  auto const plain = safetensors::read_index(head.value(), from.size(), true);
  if (!plain) return plain.error();
  for (auto const& [key, text] : plain.value().metadata)
    if (key == format_key) return found;
  return {errc::wrong_format, 8};
}

template <byte_source Source>
result<index> open(Source const& from) {
  std::int64_t const size = from.size(), last_bytes = std::min<std::int64_t>(size, ending::bytes);
  auto const last = read_bytes(from, size - last_bytes, last_bytes);
  if (!last) return last.error();
  auto const end = ending::of(last.value(), size);
  if (!end) return without_ending(from, end.error());
  auto const table = read_bytes(from, size - end.value().table_bytes, end.value().table_bytes);
  if (!table) return table.error();
  if (status const ok = detail::check_table(table.value(), size - end.value().table_bytes); !ok) return ok;
  // The header's length is taken from the table, so that a flip in it is found as one.
  std::int64_t const head_bytes = detail::word(table.value(), 16);
  if (head_bytes > size - end.value().table_bytes || head_bytes > safetensors::longest_header + 8 || head_bytes < 8)
    return status{errc::bad_format, size - end.value().table_bytes + 16};
  auto const head = read_bytes(from, 0, head_bytes);
  if (!head) return head.error();
  return parse(head.value(), table.value(), size);
}

// Whether blocks have the sums that they should: those of a tensor's bytes, computed elsewhere.
inline status compare(index const& file, entry const& e, std::vector<std::uint64_t> const& sums) noexcept {
  for (std::int64_t i = 0; i < std::ssize(sums); ++i)
    if (sums[static_cast<std::size_t>(i)] != file.sums[static_cast<std::size_t>(e.first_block + i)])
      return {errc::damaged, e.at + i * file.block_bytes};
  return {};
}

// Blocks of a tensor that were read, from block `first` on, each whole.
inline status check_blocks(index const& file, entry const& e, std::int64_t first, std::span<std::byte const> bytes) noexcept {
  std::int64_t at = first * file.block_bytes;
  for (std::int64_t i = first; !bytes.empty(); ++i) {
    auto const block = bytes.first(static_cast<std::size_t>(std::min(file.block_bytes, std::ssize(bytes))));
    if (checksum(block) != file.sums[static_cast<std::size_t>(e.first_block + i)]) return {errc::damaged, e.at + at};
    for (std::int64_t j = std::max<std::int64_t>(0, e.packed_bytes() - at); j < std::ssize(block); ++j)
      if (block[static_cast<std::size_t>(j)] != std::byte{0}) return {errc::bad_format, e.at + at + j};
    at += std::ssize(block);
    bytes = bytes.subspan(block.size());
  }
  return {};
}

// Block `i` of a tensor. `memory` has room for a block.
template <byte_source Source>
status verify_block(Source const& from, index const& file, entry const& e, std::int64_t i, std::span<std::byte> memory) {
  std::int64_t const at = i * file.block_bytes;
  auto const bytes = memory.first(static_cast<std::size_t>(std::min(file.block_bytes, e.bytes - at)));
  if (status const ok = from.read(e.at + at, bytes); !ok) return ok;
  return check_blocks(file, e, i, bytes);
}

template <byte_source Source>
status verify(Source const& from, index const& file, entry const& e) {
  std::vector<std::byte> memory(static_cast<std::size_t>(std::min(file.block_bytes, e.bytes)));
  for (std::int64_t i = 0; i < divide_up(e.bytes, file.block_bytes); ++i)
    if (status const ok = verify_block(from, file, e, i, memory); !ok) return ok;
  return {};
}
template <byte_source Source>
status verify(Source const& from, index const& file) {
  for (entry const& e : file.tensors)
    if (status const ok = verify(from, file, e); !ok) return ok;
  return {};
}

// Whether a packed tensor has room for what it is said to be. Without it no figure of its packing may be computed with.
inline status check_packing(entry const& e, tile_layout const& layout) noexcept {
  packing const& p = *e.packed;
  bool const fits = layout.bound_bytes(p.rows, p.columns) != std::numeric_limits<std::int64_t>::max() &&
                    layout.fixed_bytes(p.rows, p.columns) <= p.bytes - layout.padding();
  return fits ? status{} : status{errc::bad_format, e.at};
}

struct run {
  std::int64_t bytes = 0;     // of the packed matrix of these rows, in `memory`
  std::int64_t fixed = 0;     // of them, fixed parts
  std::int64_t fixed_at = 0;  // in the tensor: where they were read from
  tail_extent tails;          // in the tensor, likewise
};

// Rows [first_row, first_row + rows) of a packed tensor as a packed matrix of their own, which packed_matrix::open takes and checks.
// first_row is a multiple of layout.tokens; so is rows, or it ends with the matrix.
//
// memory  layout.bound_bytes(rows, columns) bytes are always enough; from a multiple of 64 on, for open
// seen    seen(at, bytes) gets what was read as it is stored, from byte `at` of the tensor: to sum it
template <byte_source Source, class Seen = decltype([](std::int64_t, std::span<std::byte const>) {})>
result<run> read_run(Source const& from, entry const& e, tile_layout const& layout, std::int64_t first_row, std::int64_t rows,
                     std::span<std::byte> memory, Seen&& seen = {}) {
  PITH_EXPECTS(e.packed && first_row >= 0 && rows > 0 && first_row % layout.tokens == 0 && first_row + rows <= e.packed->rows);
  packing const& p = *e.packed;
  run out;
  if (status const ok = check_packing(e, layout); !ok) return ok;
  out.fixed = layout.fixed_bytes(rows, p.columns);
  out.fixed_at = layout.fixed_bytes(first_row, p.columns);
  if (out.fixed > std::ssize(memory)) return status{errc::capacity_exceeded, out.fixed};
  auto const fixed = memory.first(static_cast<std::size_t>(out.fixed));
  if (status const ok = from.read(e.at + out.fixed_at, fixed); !ok) return ok;
  seen(out.fixed_at, std::span<std::byte const>(fixed));
  auto const tails = tails_of(layout, fixed, out.fixed_at, p.bytes);
  if (!tails) return status{errc::bad_format, e.at + out.fixed_at + tails.error().at};
  if (layout.has_tails && tails.value().begin < layout.fixed_bytes(p.rows, p.columns)) return status{errc::bad_format, e.at + out.fixed_at};
  out.tails = tails.value();
  std::int64_t const tail_bytes = out.tails.end - out.tails.begin;
  out.bytes = out.fixed + tail_bytes + layout.padding();
  if (out.bytes > std::ssize(memory)) return status{errc::capacity_exceeded, out.bytes};
  auto const behind = memory.subspan(fixed.size(), static_cast<std::size_t>(tail_bytes));
  if (status const ok = from.read(e.at + out.tails.begin, behind); !ok) return ok;
  seen(out.tails.begin, std::span<std::byte const>(behind));
  std::fill_n(memory.data() + out.fixed + tail_bytes, layout.padding(), std::byte{0});
  move_tails(layout, fixed, out.fixed + out.fixed_at - out.tails.begin);
  return out;
}

}  // namespace pith::container
