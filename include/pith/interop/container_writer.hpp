// SPDX-License-Identifier: Apache-2.0
// Writes a file of packed tensors (container.hpp) to anything that takes bytes at places, tensor by tensor, each in runs of rows.
//
//   container_writer to(sink, container_writer<Sink>::header_bound(tensors, metadata, original));
//   auto open = to.begin();                                behind all others; the next begins when this one's size is known
//     open.write(at, bytes)                                anywhere in it, every byte once, from any thread
//     open.write_run(layout, fixed_at, tails_at, run)      a run of rows that was packed alone: to its two places
//   to.reserve(open, bytes)                                its size: now the next may begin, or, without it, be written over this one
//   to.end(open, name, dtype, shape)                       or end_packed(open, name, layout, packing): everything is written
//   to.finish(metadata, original)                          the checksums, then the header
//
// errors  what the sink says to a write is what the call returns; then nothing is to be used any more
// memory  names and shapes, eight bytes a block, and a few blocks of every open tensor, whatever the file's size
// order   packed tensors first: they take multiples of 64 bytes, and have to begin at one
// threads open_tensor: any; the writer's own calls one at a time
#pragma once

#include <memory>

#include "pith/interop/container.hpp"
#include "pith/linear/packed_rows.hpp"

namespace pith::container {

// Rule K1  write(at, bytes) puts bytes at byte `at`; places may come in any order. Rule K2  calls may be made at the same time.
template <class S>
concept byte_sink = requires(S& s, std::int64_t at, std::span<std::byte const> bytes) {
  { s.write(at, bytes) } -> std::same_as<status>;
};

// Text as a JSON string.
inline std::string json_text(std::string_view text) {
  std::string out = "\"";
  for (char const c : text) {
    static constexpr char digits[] = "0123456789abcdef";
    auto const byte = static_cast<unsigned char>(c);
    if (byte < 0x20) {
      out += "\\u00";
      out += digits[byte >> 4];
      out += digits[byte & 15];
    } else {
      if (c == '"' || c == '\\') out += '\\';
      out += c;
    }
  }
  return out + '"';
}

using metadata_list = std::vector<std::pair<std::string, std::string>>;

template <byte_sink Sink>
class container_writer {
 public:
  // A tensor that is being written.
  class open_tensor {
   public:
    status write(std::int64_t at, std::span<std::byte const> bytes) {
      sums_->add(at, bytes);
      return sink_->write(at_ + at, bytes);
    }
    // A run that was packed alone; its distances are changed on the way.
    status write_run(tile_layout const& layout, std::int64_t fixed_at, std::int64_t tails_at, run_bytes const& run) {
      move_tails(layout, run.fixed, tails_at - fixed_at - std::ssize(run.fixed));
      if (status const ok = write(fixed_at, run.fixed); !ok || run.tails.empty()) return ok;
      return write(tails_at, run.tails);
    }

   private:
    friend container_writer;
    open_tensor(Sink& sink, std::int64_t at, std::int64_t block_bytes)
        : sink_(&sink), at_(at), sums_(std::make_unique<block_sums>(block_bytes)) {}
    Sink* sink_;
    std::int64_t at_, slot_ = -1;
    std::unique_ptr<block_sums> sums_;
  };

  // Bytes that the header takes at most, whichever of the tensors are packed.
  static std::int64_t header_bound(std::span<safetensors::place const> tensors, metadata_list const& metadata,
                                   std::optional<std::string> const& original) {
    std::size_t bytes = 512 + (original ? json_text(*original).size() : 0);
    for (auto const& [key, text] : metadata) bytes += json_text(key).size() + json_text(text).size() + 2;
    for (safetensors::place const& t : tensors) bytes += 2 * json_text(t.name).size() + 420 + 42 * t.shape.size();
    return round_up(static_cast<std::int64_t>(bytes), alignment);
  }

  container_writer(Sink& sink, std::int64_t header_bytes, std::int64_t block_bytes = default_block_bytes)
      : sink_(&sink), header_bytes_(header_bytes), block_(block_bytes), at_(header_bytes) {
    PITH_EXPECTS(header_bytes % alignment == 0);
  }

  open_tensor begin() { return open_tensor(*sink_, at_, block_); }

  void reserve(open_tensor& open, std::int64_t bytes) {
    PITH_EXPECTS(open.at_ == at_ && open.slot_ < 0);
    open.slot_ = std::ssize(tensors_);
    tensors_.push_back({at_, bytes, {}, {}, {}});
    at_ += bytes;
  }

  // As it is; type as safetensors writes it.
  void end(open_tensor& open, std::string_view name, std::string_view type, std::vector<std::int64_t> const& shape) {
    written& t = tensors_[static_cast<std::size_t>(open.slot_)];
    open.sums_->finish(t.bytes);
    t.sums = open.sums_->values();
    t.entry = described(name, type, shape, t.at, t.bytes);
  }
  // Packed, reserved with stored_bytes(p): the zeros at its end are written here.
  status end_packed(open_tensor& open, std::string_view name, tile_layout const& layout, packing const& p) {
    std::int64_t const stored = stored_bytes(p), done = p.bytes - layout.padding();
    std::vector<std::byte> const zeros(static_cast<std::size_t>(stored - done));
    if (status const ok = open.write(done, zeros); !ok) return ok;
    end(open, name, "U8", {stored});
    tensors_[static_cast<std::size_t>(open.slot_)].packing =
        json_text(std::string(tensor_key) + std::string(name)) + ":" + json_text(print(p));
    return {};
  }

  // The table and the header; gives the file's bytes.
  //
  // errors  capacity_exceeded  the header is longer than was reserved; `at` is the bytes wanted
  result<std::int64_t> finish(metadata_list const& metadata, std::optional<std::string> const& original) {
    std::int64_t blocks = 0;
    std::string packings, entries;
    for (written const& t : tensors_) {
      blocks += std::ssize(t.sums);
      entries += t.entry + ",";
      if (!t.packing.empty()) packings += "," + t.packing;
    }
    std::int64_t const table_bytes = ending::words_before + ending::bytes + 8 * blocks;
    std::string text = "{\"__metadata__\":{" + json_text(format_key) + ":" + json_text(format_version) + packings;
    if (original) text += "," + json_text(original_key) + ":" + json_text(*original);
    for (auto const& [key, value] : metadata) text += "," + json_text(key) + ":" + json_text(value);
    text += "}," + entries + described(table_name, "U8", {table_bytes}, at_, table_bytes) + "}";
    if (std::ssize(text) + 8 > header_bytes_) return status{errc::capacity_exceeded, std::ssize(text) + 8};
    if (header_bytes_ - 8 > safetensors::longest_header) return status{errc::unsupported, header_bytes_ - 8};
    text.resize(static_cast<std::size_t>(header_bytes_ - 8), ' ');
    std::vector<std::byte> head(static_cast<std::size_t>(header_bytes_)), table;
    store_le(head.data(), static_cast<std::uint64_t>(text.size()));
    std::memcpy(head.data() + 8, text.data(), text.size());

    auto add = [&](std::uint64_t word) { store_le((table.resize(table.size() + 8), table.data() + table.size() - 8), word); };
    auto magic = [&](std::string_view word) { add(0), std::memcpy(table.data() + table.size() - 8, word.data(), 8); };
    magic(ending::begin_magic);
    for (std::int64_t const word : {block_, header_bytes_}) add(static_cast<std::uint64_t>(word));
    add(checksum(head));
    add(static_cast<std::uint64_t>(blocks));
    for (written const& t : tensors_)
      for (std::uint64_t const sum : t.sums) add(sum);
    for (std::int64_t const word : {table_bytes, at_ + table_bytes}) add(static_cast<std::uint64_t>(word));
    add(checksum(table));
    magic(ending::end_magic);
    if (status const ok = sink_->write(at_, table); !ok) return ok;
    if (status const ok = sink_->write(0, head); !ok) return ok;
    return at_ + table_bytes;
  }

 private:
  struct written {
    std::int64_t at, bytes;
    std::vector<std::uint64_t> sums;
    std::string entry, packing;
  };

  std::string described(std::string_view name, std::string_view type, std::vector<std::int64_t> const& shape, std::int64_t at,
                        std::int64_t bytes) const {
    std::string out = json_text(name) + ":{\"dtype\":" + json_text(type) + ",\"shape\":[";
    for (std::size_t i = 0; i < shape.size(); ++i) out += (i > 0 ? "," : "") + std::to_string(shape[i]);
    return out + "],\"data_offsets\":[" + std::to_string(at - header_bytes_) + "," + std::to_string(at - header_bytes_ + bytes) + "]}";
  }

  Sink* sink_;
  std::int64_t header_bytes_, block_, at_;
  std::vector<written> tensors_;
};

}  // namespace pith::container
