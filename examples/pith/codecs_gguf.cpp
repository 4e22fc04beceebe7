// SPDX-License-Identifier: Apache-2.0
// The codecs that hold the numbers of GGUF types, bit for bit: only unpacked and converted to, never chosen for rounding.
#include "codecs_gguf.hpp"

#include "packed_codec.hpp"

namespace tool {

namespace {

using pith::gguf::type;

template <type Type>
struct converted {
  using matrix = pith::gguf::matrix_of<Type>;
  static constexpr int panel = matrix::tile::channels;
  using as_codec = packed_codec<float, pith::gguf::codec_of<Type>, panel>;

  static pith::result<std::int64_t> pack(pith::gguf::tensor const& from, scratch& to) {
    std::int64_t const bytes = matrix::bound_bytes(from.rows(), from.columns());
    auto const made = pith::gguf::pack_into<Type>(from, {to.of(bytes), static_cast<std::size_t>(bytes)});
    return made ? pith::result<std::int64_t>(bytes) : made.error();
  }
  static gguf_codec line(std::string name) {
    return {Type, {std::move(name), "F32", true, panel, as_codec::layout, nullptr, &as_codec::unpack}, &pack};
  }
};

}  // namespace

std::vector<gguf_codec> const& gguf_codecs() {
  static std::vector<gguf_codec> const all{
      converted<type::q8_0>::line("int8<per_token<32>,none>"),     converted<type::q4_0>::line("int4<per_token<32>,none>"),
      converted<type::q5_0>::line("int5<per_token<32>,none>"),     converted<type::q4_1>::line("int4<per_token<32>,real>"),
      converted<type::q5_1>::line("int5<per_token<32>,real>"),     converted<type::q4_k>::line("int4<per_token<32>,real,f32>"),
      converted<type::q5_k>::line("int5<per_token<32>,real,f32>"), converted<type::q6_k>::line("int6<per_token<16>,none,f32>")};
  return all;
}

}  // namespace tool
