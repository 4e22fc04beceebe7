// SPDX-License-Identifier: Apache-2.0
// Files of packed tensors: what open accepts can be verified, and its tensors read in runs and unpacked. Byte 0: whether sums are made
// right.
#include <cstdlib>

#include "fuzz/target.hpp"
#include "pith/codec/dynamic_float.hpp"
#include "pith/interop/container_reader.hpp"
#include "pith/interop/container_writer.hpp"
#include "support/digest.hpp"

namespace {

namespace ct = pith::container;
using pith::bf16;
using weights = pith::packed_matrix<pith::dynamic_float<bf16>, pith::use::dot, 64>;
constexpr pith::tile_layout layout = pith::layout_of<weights>();
constexpr std::int64_t rows = 40, columns = 70;

struct sink {
  pith_test::bytes bytes;
  pith::status write(std::int64_t at, std::span<std::byte const> from) {
    if (at + std::ssize(from) > std::ssize(bytes)) bytes.resize(static_cast<std::size_t>(at + std::ssize(from)));
    std::copy(from.begin(), from.end(), bytes.begin() + at);
    return {};
  }
};

pith_test::bytes file(bool with_original) {
  pith_test::random_bits random(5);
  std::vector<bf16> w(static_cast<std::size_t>(rows * columns));
  for (bf16& x : w) x = pith::from_float<bf16>(random.uniform() * random.uniform());
  sink out;
  ct::container_writer<sink> to(out, 1024, ct::least_block_bytes);
  auto const packed = weights::pack(pith::matrix_view<bf16 const>(w.data(), {rows, columns})).value();
  ct::packing const p{"dynamic_float<bf16,window>", 1, "dot", 64, rows, columns, "BF16", {rows, columns}, std::ssize(packed.bytes())};
  auto open = to.begin();
  to.reserve(open, ct::stored_bytes(p));
  bool good = static_cast<bool>(open.write(0, packed.bytes().first(packed.bytes().size() - pith::tail_padding)));
  good = good && to.end_packed(open, "w", layout, p);
  open = to.begin();
  to.reserve(open, 6);
  std::byte const six[6]{};
  good = good && open.write(0, six);
  to.end(open, "n", "U8", {2, 3});
  std::string const original =
      R"({"n":{"dtype":"U8","shape":[2,3],"data_offsets":[0,6]},"w":{"dtype":"BF16","shape":[40,70],"data_offsets":[6,5606]}})";
  good = good && to.finish({{"format", "pt"}}, with_original ? std::optional(original) : std::nullopt);
  if (!good) std::abort();
  return out.bytes;
}

// The sums of header and table over whatever they say, and the file's length.
void seal(std::span<std::byte> of) {
  if (of.size() < 80) return;
  std::uint64_t const stated = pith::load_le<std::uint64_t>(of.data()),
                      table_bytes = pith::load_le<std::uint64_t>(of.data() + of.size() - 32);
  if (stated > of.size() - 8 || table_bytes > of.size() || table_bytes < 72) return;
  std::span<std::byte> const table = of.last(table_bytes);
  pith::store_le(table.data() + 16, 8 + stated);
  pith::store_le(table.data() + 24, pith::checksum(of.first(8 + stated)));
  pith::store_le(of.data() + of.size() - 24, static_cast<std::uint64_t>(of.size()));
  pith::store_le(of.data() + of.size() - 16, pith::checksum(table.first(table.size() - 16)));
}

}  // namespace

void pith_test::fuzz_one(std::span<std::byte const> input) {
  marked_input const marks(input);
  exact_copy const bytes(marks.rest);
  if (marks.repair) seal(bytes.get());
  ct::memory_source const from{bytes.get()};
  auto const opened = ct::open(from);
  if (!opened) return;
  ct::index const& file = opened.value();
  static_cast<void>(ct::verify(from, file));
  for (ct::entry const& e : file.tensors) {
    if (file.find(e.name) != &e || file.owner(e.at).empty()) std::abort();
    if (!e.packed || !ct::check_packing(e, layout)) continue;
    std::int64_t const count = e.packed->rows, width = e.packed->columns;  // as many as the file has room for
    for (std::int64_t first = 0; first < count; first += 32) {
      std::int64_t const some = std::min<std::int64_t>(32, count - first);
      exact_copy const memory(std::vector<std::byte>(static_cast<std::size_t>(layout.bound_bytes(some, width))));
      auto const run = ct::read_run(from, e, layout, first, some, memory.get());
      if (!run) continue;
      auto const matrix = weights::open(memory.get().first(static_cast<std::size_t>(run.value().bytes)), some, width);
      if (!matrix) continue;
      std::vector<bf16> numbers(static_cast<std::size_t>(some * width));
      if (!matrix.value().unpack(pith::matrix_view<bf16>(numbers.data(), {some, width}))) std::abort();
    }
  }
}

std::vector<pith_test::bytes> pith_test::fuzz_seeds() {
  std::vector<bytes> seeds;
  for (bool const repair : {false, true})
    for (bool const with_original : {false, true}) seeds.push_back(marked(repair, file(with_original)));
  return seeds;
}
