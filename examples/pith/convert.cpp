// SPDX-License-Identifier: Apache-2.0
// convert: the tensors of a GGUF file as packed tensors, in runs of rows. Codes and scales are moved, nothing is rounded; tensors that are
// not quantized stay as they are. Metadata that is text or a number comes along as text, under "gguf." and its key; arrays do not.
#include <algorithm>
#include <functional>

#include "codecs_gguf.hpp"
#include "commands.hpp"
#include "files.hpp"
#include "pith/interop/container_writer.hpp"
#include "work.hpp"

namespace tool {

namespace {

using writer = pith::container::container_writer<output_file>;
using pith::gguf::type;

std::string_view plain_type(type t) {
  constexpr std::pair<type, std::string_view> names[] = {{type::f32, "F32"}, {type::f16, "F16"}, {type::bf16, "BF16"}, {type::i8, "I8"},
                                                         {type::i16, "I16"}, {type::i32, "I32"}, {type::i64, "I64"},   {type::f64, "F64"}};
  auto const it = std::ranges::find(names, t, &std::pair<type, std::string_view>::first);
  return it == std::end(names) ? std::string_view() : it->second;
}

pith::container::metadata_list metadata_of(pith::gguf::file const& file) {
  pith::container::metadata_list out;
  for (auto const& [key, value] : file.metadata) {
    std::string text;
    if (auto const x = value.as_text())
      text = *x;
    else if (auto const n = value.as_signed())
      text = std::to_string(*n);
    else if (auto const u = value.as_unsigned())
      text = std::to_string(*u);
    else if (auto const f = value.as_float())
      text.resize(32), text.resize(static_cast<std::size_t>(std::snprintf(text.data(), text.size(), "%.17g", *f)));
    else
      continue;
    out.emplace_back("gguf." + std::string(key), text);
  }
  return out;
}

}  // namespace

totals convert_file(std::string const& from, std::string const& to, options const& with, threads& run) {
  mapped_file const in(from);
  auto const read = pith::gguf::read(in.bytes());
  if (!read) fail(from, read.error(), "the header");
  pith::gguf::file const& file = read.value();
  std::vector<pith::safetensors::place> places;
  std::vector<std::pair<pith::gguf::tensor const*, gguf_codec const*>> packed, raw;
  for (pith::gguf::tensor const& t : file.tensors) {
    auto const codec = std::ranges::find(gguf_codecs(), t.type, &gguf_codec::type);
    bool const known = codec != gguf_codecs().end(), empty = t.bytes.empty();
    if (!known && plain_type(t.type).empty())
      throw failure(not_supported, from + ": tensor " + std::string(t.name) + ": GGUF type " + std::to_string(static_cast<int>(t.type)));
    (known && !empty ? packed : raw).emplace_back(&t, known ? &*codec : nullptr);
    places.push_back({std::string(t.name), "F32", t.shape});
  }
  std::ranges::stable_sort(raw, std::greater<>(), [](auto const& one) { return pith::gguf::shape_of(one.first->type).bytes; });

  auto const metadata = metadata_of(file);
  output_file out(to, with.force);
  writer file_out(out, writer::header_bound(places, metadata, std::nullopt));
  progress shown("convert", std::ssize(in.bytes()), with.quiet);
  auto check = [&](pith::status const& s, pith::gguf::tensor const& t) {
    if (!s) fail(s.code == pith::errc::io_error ? to : from, s, "tensor " + std::string(t.name));
  };
  for (auto const& [t, how] : packed) {
    pith::tile_layout const& layout = how->with.layout;
    pith::container::packing const p{
        how->with.name, 1, "dot", how->with.panel, t->rows(), t->columns(), "F32", t->shape, layout.fixed_bytes(t->rows(), t->columns())};
    writer::open_tensor open = file_out.begin();
    file_out.reserve(open, pith::container::stored_bytes(p));
    std::int64_t const rows = std::max(layout.tokens, run_bytes_wanted / (4 * t->columns()) / layout.tokens * layout.tokens);
    pipeline().run(run, pith::divide_up(t->rows(), rows), [&](std::int64_t i) {
      thread_local scratch memory;
      auto const some = t->part(i * rows, std::min(rows, t->rows() - i * rows));
      auto const bytes = how->pack(some, memory);
      check(bytes.error(), *t);
      check(open.write(layout.fixed_bytes(i * rows, t->columns()), {memory.of(0), static_cast<std::size_t>(bytes.value())}), *t);
      shown.add(std::ssize(some.bytes));
    });
    check(file_out.end_packed(open, t->name, layout, p), *t);
  }
  for (auto const& [t, how] : raw) {
    writer::open_tensor open = file_out.begin();
    file_out.reserve(open, std::ssize(t->bytes));
    check(open.write(0, t->bytes), *t);
    file_out.end(open, t->name, how != nullptr ? "F32" : plain_type(t->type), t->shape);
    shown.add(std::ssize(t->bytes));
  }
  auto const size = file_out.finish(metadata, std::nullopt);
  if (!size) fail(to, size.error(), "the header");
  stop_if_asked();
  out.commit(size.value());
  return {std::ssize(file.tensors), std::ssize(packed), std::ssize(in.bytes()), size.value()};
}

}  // namespace tool
