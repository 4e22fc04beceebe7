// SPDX-License-Identifier: Apache-2.0
// Parts of a file that come and go: against a model, by several threads, damaged, cut short; bundles; experts of several codecs.
#include <atomic>
#include <deque>
#include <map>
#include <thread>

#include "pith/codec/dynamic_float.hpp"
#include "pith/codec/integer.hpp"
#include "pith/cpu/linear.hpp"
#include "pith/interop/bundle.hpp"
#include "pith/interop/expert_codecs.hpp"
#include "pith/interop/stream_reader.hpp"
#include "support/catch.hpp"
#include "support/digest.hpp"

namespace ct = pith::container;
using pith::bf16, pith::errc, pith::status;

namespace {

using lossless = pith::packed_matrix<pith::dynamic_float<bf16>, pith::use::dot, 64>;
using four = pith::packed_matrix<pith::int4<pith::per_token<64>, pith::zero::none>, pith::use::dot, 64>;
constexpr std::string_view lossless_name = "dynamic_float<bf16,window>", four_name = "int4<per_token<64>,none>";
constexpr ct::matrix_codec table[] = {ct::codec_of<lossless>(lossless_name), ct::codec_of<four>(four_name)};
constexpr std::int64_t experts = 8, rows = 96, columns = 96, block = ct::least_block_bytes;

struct memory_sink {
  std::vector<std::byte> bytes;

  status write(std::int64_t at, std::span<std::byte const> from) {
    if (at + std::ssize(from) > std::ssize(bytes)) bytes.resize(static_cast<std::size_t>(at + std::ssize(from)));
    std::ranges::copy(from, bytes.begin() + at);
    return {};
  }
};
using writer = ct::container_writer<memory_sink>;

// A file that may have become shorter since it was opened, and that counts.
struct counting_source {
  std::span<std::byte const> bytes;
  std::int64_t now = std::ssize(bytes);
  mutable std::atomic<std::int64_t> reads{0}, read_bytes{0};

  std::int64_t size() const noexcept { return std::ssize(bytes); }
  status read(std::int64_t at, std::span<std::byte> to) const noexcept {
    ++reads;
    if (at + std::ssize(to) > now) return {errc::io_error, 5};
    read_bytes += std::ssize(to);
    std::copy_n(bytes.data() + at, to.size(), to.data());
    return {};
  }
};
// One of the two orders, so that one reader is compiled.
struct either_order {
  bool by_distance = false;
  ct::uses_by_distance distance{};

  double operator()(ct::part_use const& u) const noexcept { return by_distance ? distance(u) : ct::last_use{}(u); }
};
using reader = ct::stream_reader<counting_source, either_order>;

struct two_threads {
  template <class Function>
  void for_each(std::int64_t count, Function&& function) const {
    std::atomic<std::int64_t> next{0};
    auto run = [&] {
      for (std::int64_t i; (i = next++) < count;) function(i);
    };
    std::thread other(run);
    run();
    other.join();
  }
};

std::vector<bf16> numbers(std::uint64_t seed, std::int64_t count) {
  pith_test::random_bits random(seed);
  std::vector<bf16> out(static_cast<std::size_t>(count));
  for (bf16& x : out) x = pith::from_float<bf16>(random.uniform());
  return out;
}
std::string name_of(std::int64_t expert) { return "expert." + std::to_string(expert); }

template <class Matrix>
void add(writer& to, std::int64_t expert, std::string_view codec) {
  auto const w = numbers(static_cast<std::uint64_t>(expert), rows * columns);
  auto const packed = Matrix::pack(pith::matrix_view<bf16 const>(w.data(), {rows, columns})).value();
  constexpr pith::tile_layout layout = pith::layout_of<Matrix>();
  ct::packing const p{std::string(codec), 1, "dot", 64, rows, columns, "BF16", {rows, columns}, std::ssize(packed.bytes())};
  auto open = to.begin();
  to.reserve(open, ct::stored_bytes(p));
  REQUIRE(open.write(0, packed.bytes().first(packed.bytes().size() - static_cast<std::size_t>(layout.padding()))) == status{});
  REQUIRE(to.end_packed(open, name_of(expert), layout, p) == status{});
}

// choice[expert]: lossless, int4.
std::vector<std::byte> make_file(std::vector<std::int64_t> const& choice) {
  memory_sink sink;
  writer to(sink, 4096, block);
  for (std::int64_t e = 0; e < std::ssize(choice); ++e) {
    if (choice[static_cast<std::size_t>(e)] == 0) add<lossless>(to, e, lossless_name);
    if (choice[static_cast<std::size_t>(e)] == 1) add<four>(to, e, four_name);
  }
  REQUIRE(to.finish({}, std::nullopt));
  return sink.bytes;
}
std::vector<ct::stream_part> all_parts() {
  std::vector<ct::stream_part> parts;
  for (std::int64_t e = 0; e < experts; ++e) parts.push_back({name_of(e), 0, 0, 1, e});
  return parts;
}

std::vector<std::byte> const& file_bytes() {
  static std::vector<std::byte> const bytes = make_file({0, 1, 1, 0, 1, 1, 0, 1});
  return bytes;
}

std::span<std::byte const> stored(ct::index const& file, std::span<std::byte const> bytes, std::int64_t expert) {
  ct::entry const& e = *file.find(name_of(expert));
  return bytes.subspan(static_cast<std::size_t>(e.at), static_cast<std::size_t>(e.packed->bytes));
}

// What the rules say, written down plainly, for one thread.
struct model {
  std::vector<std::int64_t> bytes;
  std::int64_t budget, tick = 0, loads = 0, discarded = 0, hits = 0;
  std::map<std::int64_t, std::int64_t> resident;  // part, last use
  std::vector<int> pins;
  std::vector<bool> wanted;
  std::deque<std::int64_t> queue;

  std::int64_t size(std::int64_t p) const { return bytes[static_cast<std::size_t>(p)]; }
  std::int64_t used() const {
    std::int64_t sum = 0;
    for (auto const& [p, last] : resident) sum += size(p);
    return sum;
  }
  void forget(std::int64_t p) {
    wanted[static_cast<std::size_t>(p)] = false;
    std::erase(queue, p);
  }
  bool make_room(std::int64_t wanted_bytes, bool wanted_too) {
    auto const before = resident;
    for (bool const even_wanted : {false, true})
      while (used() + wanted_bytes > budget && (wanted_too || !even_wanted)) {
        std::int64_t oldest = -1;
        for (auto const& [p, last] : resident)
          if (pins[static_cast<std::size_t>(p)] == 0 && wanted[static_cast<std::size_t>(p)] == even_wanted &&
              (oldest < 0 || last < resident[oldest]))
            oldest = p;
        if (oldest < 0) break;
        resident.erase(oldest);
      }
    if (used() + wanted_bytes > budget) return resident = before, false;
    for (auto const& [p, last] : before)
      if (!resident.contains(p)) forget(p), discarded += size(p);
    return true;
  }
  void want(std::int64_t p) {
    if (!wanted[static_cast<std::size_t>(p)] && !resident.contains(p)) queue.push_back(p);
    wanted[static_cast<std::size_t>(p)] = true;
  }
  bool poll() {
    if (queue.empty() || !make_room(size(queue.front()), false)) return false;
    resident[queue.front()] = ++tick, ++loads;
    queue.pop_front();
    return true;
  }
  bool get(std::int64_t p) {
    forget(p);
    hits += resident.contains(p);
    if (!resident.contains(p)) {
      if (!make_room(size(p), true)) return false;
      ++tick, ++loads;
    }
    resident[p] = ++tick;
    ++pins[static_cast<std::size_t>(p)];
    return true;
  }
};

}  // namespace

TEST_CASE("stream_reader: experts of several codecs are multiplied behind one handle", "[interop][stream]") {
  std::vector<double> importance;
  std::vector<std::int64_t> sizes, choice(experts);
  for (std::int64_t e = 0; e < experts; ++e) {
    importance.push_back(static_cast<double>((e * 5) % experts));
    auto const w = numbers(static_cast<std::uint64_t>(e), rows * columns);
    sizes.push_back(std::ssize(lossless::pack(pith::matrix_view<bf16 const>(w.data(), {rows, columns})).value().bytes()));
    sizes.push_back(four::bound_bytes(rows, columns));
  }
  REQUIRE(ct::choose_codecs(importance, sizes, 2, 2 * sizes[0] + 6 * sizes[1] + 500, choice) == status{});
  CHECK((std::ranges::count(choice, 0) == 2 && std::ranges::count(choice, 1) == 6 && choice[0] == 1));
  auto const bytes = make_file(choice);
  counting_source const from{bytes};
  auto const file = ct::open(from).value();
  auto made = reader::make(from, file, table, all_parts(), 40000);
  REQUIRE(made);
  reader& r = *made.value();
  std::vector<float> x(2 * columns), out(2 * rows), direct(2 * rows), back(2 * columns), direct_back(2 * columns);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i % 13) - 6;
  auto compare = [&]<class Matrix>(ct::any_matrix const& w, std::span<std::byte const> held) {
    auto const one = Matrix::open(held, rows, columns).value();
    std::vector<std::byte> scratch(static_cast<std::size_t>(std::max(one.scratch_bytes(2), one.transposed_scratch_bytes(2))));
    REQUIRE((w.scratch_bytes(2) == one.scratch_bytes(2) && w.transposed_scratch_bytes(2) == one.transposed_scratch_bytes(2)));
    pith::matrix_view<float const> const in(x.data(), {2, columns}), in_back(out.data(), {2, rows});
    REQUIRE(w.multiply(in, pith::matrix_view<float>(out.data(), {2, rows}), scratch) == status{});
    REQUIRE(one.multiply(in, pith::matrix_view<float>(direct.data(), {2, rows}), scratch) == status{});
    REQUIRE(w.multiply_transposed(in_back, pith::matrix_view<float>(back.data(), {2, columns}), scratch) == status{});
    REQUIRE(one.multiply_transposed(in_back, pith::matrix_view<float>(direct_back.data(), {2, columns}), scratch) == status{});
    CHECK((out == direct && back == direct_back && out[1] != 0));
  };
  for (std::int64_t e = 0; e < experts; ++e) {
    auto const held = r.get(e);
    REQUIRE(held);
    CHECK(r.name(e) == name_of(e));
    CHECK(std::ranges::equal(held.value().bytes(), stored(file, bytes, e)));
    ct::any_matrix const& w = held.value().matrix();
    REQUIRE((w.rows() == rows && w.columns() == columns));
    if (choice[static_cast<std::size_t>(e)] == 0) compare.operator()<lossless>(w, held.value().bytes());
    if (choice[static_cast<std::size_t>(e)] == 1) compare.operator()<four>(w, held.value().bytes());
  }
}

TEST_CASE("stream_reader: any calls leave what the rules say", "[interop][stream]") {
  auto const& bytes = file_bytes();
  counting_source const from{bytes};
  auto const file = ct::open(from).value();
  pith_test::random_bits random(1);
  for (std::int64_t const budget : {20000, 33000, 47000, 200000}) {
    auto made = reader::make(from, file, table, all_parts(), budget);
    REQUIRE(made);
    reader& r = *made.value();
    model m{{}, budget, 0, 0, 0, 0, {}, std::vector<int>(experts), std::vector<bool>(experts), {}};
    for (std::int64_t e = 0; e < experts; ++e) m.bytes.push_back(r.bytes(e));
    std::vector<std::pair<std::int64_t, reader::held>> pinned;
    from.read_bytes = 0;
    for (int step = 0; step < 2000; ++step) {
      auto const p = static_cast<std::int64_t>(random() % experts);
      switch (random() % 6) {
        case 0:
          REQUIRE(r.want(p) == status{});
          m.want(p);
          break;
        case 1:
          REQUIRE(r.unwant(p) == status{});
          m.forget(p);
          break;
        case 2: REQUIRE(r.poll() == m.poll()); break;
        case 3:
          if (!pinned.empty()) {
            std::size_t const i = random() % pinned.size();
            --m.pins[static_cast<std::size_t>(pinned[i].first)];
            std::swap(pinned[i], pinned.back());
            pinned.pop_back();
          }
          break;
        default: {
          auto held = r.get(p);
          REQUIRE(static_cast<bool>(held) == m.get(p));
          if (held)
            pinned.emplace_back(p, std::move(held).value());
          else
            REQUIRE(held.error() == status{errc::capacity_exceeded, r.bytes(p)});
        }
      }
      auto const s = r.statistics();
      REQUIRE((s.resident_bytes == m.used() && s.resident_bytes <= budget && s.most_resident_bytes <= budget));
      REQUIRE((s.loads == m.loads && s.hits == m.hits && s.bytes_discarded == m.discarded && s.bytes_unused <= s.bytes_discarded));
      bool kept = true;
      if (step % 16 == 0)
        for (auto const& [part, held] : pinned) kept &= std::ranges::equal(held.bytes(), stored(file, bytes, part));
      REQUIRE(kept);
    }
    auto const s = r.statistics();
    CHECK((s.bytes_read == from.read_bytes && s.failures == 0 && s.late == 0 && s.hits > 0 && s.misses > 0));
    CHECK((s.bytes_discarded > 0) == (budget < 200000));
  }
}

TEST_CASE("stream_reader: loads ahead by two threads, in and out of order, and gets in between", "[interop][stream]") {
  auto const& bytes = file_bytes();
  counting_source const from{bytes};
  auto const file = ct::open(from).value();
  for (bool const forwards : {true, false}) {
    auto made = reader::make(from, file, table, all_parts(), 1 << 20);
    reader& r = *made.value();
    for (std::int64_t e = 0; e < experts; ++e) REQUIRE(r.want(forwards ? e : experts - 1 - e) == status{});
    r.load_wanted(two_threads{});
    for (std::int64_t e = 0; e < experts; ++e) CHECK(std::ranges::equal(r.get(e).value().bytes(), stored(file, bytes, e)));
    auto const s = r.statistics();
    CHECK((s.hits == experts && s.loads == experts && s.misses == 0 && s.late == 0));
  }
  // Both ask, want, load and let go as they like. Each holds one part at a time, and any two fit.
  std::int64_t const budget = 40000;
  auto made = reader::make(from, file, table, all_parts(), budget);
  reader& r = *made.value();
  std::atomic<int> wrong{0};
  two_threads{}.for_each(2, [&](std::int64_t thread) {
    pith_test::random_bits random(static_cast<std::uint64_t>(thread) + 5);
    for (int step = 0; step < 1500; ++step) {
      auto const p = static_cast<std::int64_t>(random() % experts);
      if (random() % 2 == 0) wrong += !r.want(p);
      if (random() % 2 == 0) r.poll();
      if (random() % 8 == 0) wrong += !r.unwant(p);
      auto const held = r.get(static_cast<std::int64_t>(random() % experts));
      wrong += !held || held.value().matrix().rows() != rows;
      auto const q = static_cast<std::int64_t>(random() % experts);
      if (step % 4 == 0 && held) wrong += r.name(q) != name_of(q);
    }
  });
  auto const s = r.statistics();
  CHECK(wrong == 0);
  CHECK((s.most_resident_bytes <= budget && s.hits + s.late + s.misses == 3000 && s.failures == 0));
  for (std::int64_t e = 0; e < experts; ++e) CHECK(std::ranges::equal(r.get(e).value().bytes(), stored(file, bytes, e)));
}

TEST_CASE("stream_reader: a flipped bit is told at get, with its block; what was right before is kept", "[interop][stream][damage]") {
  auto bytes = file_bytes();
  counting_source const from{bytes};
  auto const file = ct::open(from).value();
  for (std::int64_t part = 0; part < 3; ++part) {
    ct::entry const& e = *file.find(name_of(part));
    for (std::int64_t place = e.at; place < e.at + e.bytes; place += 509) {
      auto made = reader::make(from, file, table, all_parts(), 40000);
      reader& r = *made.value();
      auto const other = r.get(7);
      bytes[static_cast<std::size_t>(place)] ^= std::byte{4};
      status const here = r.get(part).error();
      REQUIRE(r.want(part) == status{});
      REQUIRE(r.poll());
      status const ahead = r.get(part).error();
      REQUIRE(r.want(part) == status{});
      REQUIRE(r.poll());
      REQUIRE(r.unwant(part) == status{});  // forgets the third failure
      bytes[static_cast<std::size_t>(place)] ^= std::byte{4};
      REQUIRE((here.code == errc::damaged && here.at <= place && place < here.at + block && ahead == here));
      REQUIRE((file.owner(here.at) == r.name(part) && r.statistics().failures == 3));
      REQUIRE(r.statistics().resident_bytes == r.bytes(7));
      REQUIRE(std::ranges::equal(r.get(part).value().bytes(), stored(file, bytes, part)));  // told once
      REQUIRE(std::ranges::equal(other.value().bytes(), stored(file, bytes, 7)));
    }
  }
}

TEST_CASE("stream_reader: files that became shorter, and readers that cannot be", "[interop][stream][damage]") {
  auto const& bytes = file_bytes();
  counting_source from{bytes};
  auto const file = ct::open(from).value();
  auto made = reader::make(from, file, table, all_parts(), 1 << 20);
  reader& r = *made.value();
  for (std::int64_t part = 0; part < experts; ++part) {
    ct::entry const& e = *file.find(name_of(part));
    from.now = e.at + e.bytes - 1;
    CHECK(r.get(part).error() == status{errc::io_error, 5});
    from.now = e.at + e.bytes;
    CHECK(r.get(part));
  }
  CHECK(r.get(experts).error() == status{errc::out_of_range, experts});
  CHECK(r.get(-1).error() == status{errc::out_of_range, -1});
  CHECK((r.want(experts).code == errc::out_of_range && r.unwant(-1).code == errc::out_of_range && !r.poll()));

  auto refused = [&](std::vector<ct::stream_part> const& parts, std::int64_t budget = 1 << 20, std::size_t codecs = 2) {
    return reader::make(from, file, std::span(table).first(codecs), parts, budget).error();
  };
  CHECK(refused(all_parts(), r.bytes(0) - 1) == status{errc::capacity_exceeded, r.bytes(0)});
  CHECK(refused(all_parts(), 1 << 20, 1) == status{errc::unsupported, 1});
  CHECK(refused({{name_of(0)}, {"none"}}) == status{errc::out_of_range, 1});
  CHECK(refused({{name_of(0), 32, 32}}) == status{errc::unsupported, 0});      // two ranges of the file
  CHECK(refused({{name_of(1), 32, 32}, {name_of(1), 0, 96, 3}}) == status{});  // of fixed rate
  for (ct::stream_part const& wrong :
       {ct::stream_part{name_of(1), 16, 32}, ct::stream_part{name_of(1), 0, 33}, ct::stream_part{name_of(1), 96, 0},
        ct::stream_part{name_of(1), 0, 96, 2}, ct::stream_part{name_of(1), 0, 96, 0}, ct::stream_part{name_of(1), -32, 32},
        ct::stream_part{name_of(1), 64, 64}, ct::stream_part{name_of(1), 0, -32}})
    CHECK(refused({wrong}) == status{errc::shape_mismatch, 0});
}

TEST_CASE("stream_reader: another order discards others", "[interop][stream]") {
  auto const bytes = make_file({1, 1, 1, 1});
  counting_source const from{bytes};
  auto const file = ct::open(from).value();
  std::vector<ct::stream_part> parts;
  for (std::int64_t e = 0; e < 4; ++e) parts.push_back({name_of(e), 0, 0, 1, e});
  auto made =
      reader::make(from, file, table, parts, 3 * pith::round_up(four::bound_bytes(rows, columns), std::int64_t{64}), {true, {0, 4}});
  REQUIRE(made);
  reader& r = *made.value();
  for (std::int64_t const part : {1, 2, 3}) REQUIRE(r.get(part));  // one use each: layer 3 is farthest from layer 0
  REQUIRE(r.get(0));
  for (std::int64_t const part : {0, 1, 2}) REQUIRE(r.get(part));
  CHECK(r.statistics().hits == 3);
  r.set_order({true, {2, 4}});  // now 0 (2 uses, in 2 layers), 1 (2 uses, in 3), 2 (2 uses, in 4): 2 goes
  REQUIRE(r.get(3));
  for (std::int64_t const part : {0, 1, 3}) REQUIRE(r.get(part));
  CHECK(r.statistics().hits == 6);
}

TEST_CASE("bundle: one read of 32 KiB or more brings a block of neurons, all sections", "[interop][stream]") {
  constexpr std::int64_t neurons = 600, d = 96;
  auto const up = numbers(1, neurons * d), down = numbers(2, d * neurons);  // [neurons][d], [d][neurons]
  pith::matrix_view<bf16 const> const sections[] = {{up.data(), {neurons, d}}, {down.data(), {neurons, d}, {1, neurons}}};
  constexpr pith::tile_layout layout = pith::layout_of<four>();
  ct::bundle const b{{"up", "down"}, neurons, ct::bundle_block(layout, 2, d)};
  CHECK((2 * layout.fixed_bytes(b.block, d) >= ct::least_read_bytes && 2 * layout.fixed_bytes(b.block - 32, d) < ct::least_read_bytes));
  memory_sink sink;
  writer to(sink, 4096, block);
  REQUIRE(ct::write_bundle<four, bf16>(to, "mlp", std::string(four_name), "BF16", b, sections) == status{});
  REQUIRE(to.finish({{ct::bundle_key("mlp"), ct::print(b)}}, std::nullopt));
  counting_source const from{sink.bytes};
  auto const file = ct::open(from).value();
  REQUIRE(ct::verify(from, file) == status{});
  auto const found = ct::bundle_of(file, *file.find("mlp"));
  REQUIRE(found);
  CHECK((found.value() == b && b.blocks() == 3));
  std::vector<ct::stream_part> parts;
  for (std::int64_t i = 0; i < b.blocks(); ++i) parts.push_back({"mlp", b.first_row(i), b.block_rows(), b.section_count()});
  auto made = reader::make(from, file, table, parts, 50000);
  REQUIRE(made);

  std::vector<float> x(d), out(d), part_out(d), expected(d);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i % 7) - 3;
  auto const up_packed = four::pack(sections[0]).value(), down_packed = four::pack(sections[1]).value();
  std::vector<float> h(static_cast<std::size_t>(3 * b.block)), whole(neurons);
  std::vector<std::byte> scratch(1 << 20);
  auto row = [](std::vector<float>& v) { return pith::matrix_view<float>(v.data(), {1, std::ssize(v)}); };
  for (std::int64_t i = 0; i < b.blocks(); ++i) {
    std::int64_t const before = from.reads, bytes_before = from.read_bytes;
    auto const held = made.value()->get(i);
    REQUIRE(held);
    CHECK((from.reads == before + 1 && from.read_bytes - bytes_before >= ct::least_read_bytes));
    CHECK(from.read_bytes - bytes_before < std::ssize(held.value().bytes()) + 2 * block);
    std::vector<float> some(static_cast<std::size_t>(b.block));
    REQUIRE(held.value().matrix(0).multiply(row(x), row(some), scratch) == status{});
    REQUIRE(held.value().matrix(1).multiply_transposed(row(some), row(part_out), scratch) == status{});
    std::ranges::copy(some, h.begin() + i * b.block);
    for (std::size_t c = 0; c < out.size(); ++c) out[c] += part_out[c];
  }
  REQUIRE(up_packed.multiply(row(x), row(whole), scratch) == status{});
  REQUIRE(down_packed.multiply_transposed(row(whole), row(expected), scratch) == status{});
  CHECK(std::equal(whole.begin(), whole.end(), h.begin()));
  CHECK(std::all_of(h.begin() + neurons, h.end(), [](float v) { return v == 0; }));
  for (std::size_t c = 0; c < out.size(); ++c) CHECK(std::abs(out[c] - expected[c]) <= 1e-4f * neurons);

  CHECK(ct::parse_bundle(ct::print(b)) == b);
  for (char const* const text :
       {"", "sections=", "sections=up,down neurons=600", "sections=up,down neurons=600 block=0", "sections=up,,down neurons=0600 block=256",
        "sections= neurons=600 block=256", "sections=up,down block=256 neurons=600", "sections=up,down neurons=-1 block=256",
        "sections=up,down neurons=9223372036854775807 block=9223372036854775807", "sections=up,down neurons=600 block=256 "})
    CHECK_FALSE(ct::parse_bundle(text));
  ct::index lying = file;
  lying.metadata = {{ct::bundle_key("mlp"), "sections=up,down neurons=600 block=128"}};
  CHECK(ct::bundle_of(lying, *file.find("mlp")).error() == status{errc::bad_format, file.find("mlp")->at});
  lying.metadata.clear();
  CHECK(ct::bundle_of(lying, *file.find("mlp")).error().code == errc::out_of_range);
  pith::matrix_view<bf16 const> const short_sections[] = {sections[0], {down.data(), {neurons - 1, d}}};
  CHECK(ct::write_bundle<four, bf16>(to, "x", std::string(four_name), "BF16", b, short_sections) == status{errc::shape_mismatch, 1});
}

TEST_CASE("expert_codecs: the least important get the fewest bits, and no more moves are made than are needed", "[interop][stream]") {
  pith_test::random_bits random(9);
  for (int round = 0; round < 300; ++round) {
    auto const n = static_cast<std::int64_t>(random() % 9), choices = static_cast<std::int64_t>(1 + random() % 4);
    std::vector<double> importance, loss;
    std::vector<std::int64_t> bytes, out(static_cast<std::size_t>(n), -1);
    for (std::int64_t e = 0; e < n; ++e) {
      importance.push_back(static_cast<double>(random() % 5));
      std::int64_t size = 1000;
      for (std::int64_t c = 0; c < choices; ++c) bytes.push_back(size -= random() % 200), loss.push_back(static_cast<double>(c * c));
    }
    auto total = [&](std::vector<std::int64_t> const& of) {
      std::int64_t sum = 0;
      for (std::int64_t e = 0; e < n; ++e) sum += bytes[static_cast<std::size_t>(e * choices + of[static_cast<std::size_t>(e)])];
      return sum;
    };
    std::int64_t const least = total(std::vector<std::int64_t>(static_cast<std::size_t>(n), choices - 1)),
                       most = static_cast<std::int64_t>(random() % 9000);
    status const done = ct::choose_codecs(importance, bytes, choices, most, out);
    if (least > most) {
      REQUIRE(done == status{errc::capacity_exceeded, least});
      REQUIRE(std::ranges::count(out, -1) == n);
      continue;
    }
    REQUIRE(done == status{});
    REQUIRE(total(out) <= most);
    bool ranked = true;
    std::int64_t last = -1;  // the move that was made last: the most important expert of the highest choice
    for (std::int64_t e = 0; e < n; ++e) {
      auto key = [&](std::int64_t i) { return std::tuple(out[static_cast<std::size_t>(i)], importance[static_cast<std::size_t>(i)], i); };
      if (last < 0 || key(e) > key(last)) last = e;
      for (std::int64_t f = 0; f < n; ++f)
        ranked &= importance[static_cast<std::size_t>(e)] >= importance[static_cast<std::size_t>(f)] ||
                  out[static_cast<std::size_t>(e)] >= out[static_cast<std::size_t>(f)];
    }
    REQUIRE(ranked);
    if (last >= 0 && out[static_cast<std::size_t>(last)] > 0) {
      auto undone = out;
      --undone[static_cast<std::size_t>(last)];
      REQUIRE(total(undone) > most);
    }
    auto const limit = static_cast<double>(random() % 40);
    REQUIRE(ct::choose_codecs_within(importance, loss, choices, limit, out) == status{});
    double lost = 0;
    for (std::int64_t e = 0; e < n; ++e)
      lost += importance[static_cast<std::size_t>(e)] * loss[static_cast<std::size_t>(e * choices + out[static_cast<std::size_t>(e)])];
    REQUIRE(lost <= limit);
  }
  std::vector<std::int64_t> out(2);
  std::vector<double> const two{1, 2};
  CHECK(ct::choose_codecs_within(two, std::vector<double>{0, 1, 0, 1}, 2, 1, out) == status{});
  CHECK(out == std::vector<std::int64_t>{1, 0});
  CHECK(ct::choose_codecs(two, std::vector<std::int64_t>{4, 2, 1}, 2, 9, out) == status{errc::shape_mismatch, 3});
  CHECK(ct::choose_codecs(two, std::vector<std::int64_t>{4, 5, 4, 2}, 2, 9, out) == status{errc::out_of_range, 1});
  CHECK(ct::choose_codecs(std::vector<double>{1, -1}, std::vector<std::int64_t>{4, 2, 4, 2}, 2, 9, out) == status{errc::out_of_range, 1});
  CHECK(ct::choose_codecs(two, std::vector<std::int64_t>{4, 2, 4, 2}, 2, -1, out) == status{errc::out_of_range, -1});
  CHECK(ct::choose_codecs_within(two, std::vector<double>{1, 0, 0, 1}, 2, 1, out) == status{errc::out_of_range, 1});
}
