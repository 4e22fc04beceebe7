// SPDX-License-Identifier: Apache-2.0
// The codecs of this program, by name: types become a table of functions, compiled once.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "pith/linear/packed_rows.hpp"

namespace tool {

// Memory that grows and is used again.
class scratch {
 public:
  // `bytes` bytes from a multiple of 64 on; the first `kept` are those that were there.
  std::byte* of(std::int64_t bytes, std::int64_t kept = 0);

 private:
  pith::heap_arena memory_ = pith::heap_arena::make(0).value();
};

struct codec {
  std::string name;       // as files have it
  std::string_view type;  // what it takes, as safetensors writes it; F32 stands for any floating type if rounds
  bool rounds;            // not lossless
  int panel;
  pith::tile_layout layout;

  // Null: never packed from numbers. Rows of `columns` numbers of type, one after the other; gives the bytes of the packed matrix, which
  // are in `to`.
  pith::result<std::int64_t> (*pack)(std::byte const* numbers, std::int64_t rows, std::int64_t columns, scratch& to);
  // Checks the bytes, which begin at a multiple of 64, and gives the numbers back.
  pith::status (*unpack)(std::span<std::byte const> packed, std::int64_t rows, std::int64_t columns, std::byte* numbers);
};

// window, planes, huffman, rans, int8, int4
std::vector<std::string_view> const& codec_choices();
// Of a choice for a type; the one that stores least of a matrix beside its numbers. Null: there is none.
codec const* choose_codec(std::string_view choice, std::string_view type, std::int64_t rows, std::int64_t columns);
// Numbers that a matrix is stored as, about: with what its tiles are padded with, and for what they have beside.
double stored_numbers(codec const& with, std::int64_t rows, std::int64_t columns);
codec const* find_codec(std::string_view name, std::int64_t panel);

// Numbers of a floating type as f32 and back, for codecs that round. False: the type is not one of BF16, F16, F32.
bool to_floats(std::string_view type, std::byte const* from, std::span<float> to);
bool from_floats(std::string_view type, std::span<float const> from, std::byte* to);

// Each in a source file of its own.
std::vector<codec> window_codecs();
std::vector<codec> planes_codecs();
std::vector<codec> huffman_codecs();
std::vector<codec> rans_codecs();
std::vector<codec> integer_codecs();

}  // namespace tool
