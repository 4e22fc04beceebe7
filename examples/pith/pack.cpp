// SPDX-License-Identifier: Apache-2.0
// compress and decompress: a file in runs of rows, each packed or unpacked by one thread.
#include <algorithm>
#include <cstring>
#include <functional>
#include <mutex>

#include "codecs.hpp"
#include "commands.hpp"
#include "files.hpp"
#include "pith/interop/container_reader.hpp"
#include "pith/interop/container_writer.hpp"
#include "work.hpp"

namespace tool {

namespace {

using pith::status;
using pith::container::container_writer, pith::container::entry, pith::safetensors::place;
using writer = container_writer<output_file>;

std::int64_t bytes_of(std::string_view type) {
  pith::safetensors::dtype known{};
  return pith::safetensors::parse_dtype(type, known) ? pith::safetensors::bytes_of(known) : 1;
}
std::string about(std::string_view tensor) { return "tensor " + std::string(tensor); }

// A tensor as a matrix, and its codec.
struct plan {
  place const* tensor = nullptr;
  codec const* with = nullptr;
  std::int64_t rows = 0, columns = 0, number_bytes = 0, run_rows = 0;

  std::int64_t runs() const { return pith::divide_up(rows, run_rows); }
  std::int64_t bytes() const { return tensor->end - tensor->begin; }
};

std::int64_t run_rows_of(std::int64_t tokens, std::int64_t row_bytes) {
  return std::max(tokens, run_bytes_wanted / row_bytes / tokens * tokens);
}

// Rows are the axes but the last, columns the last one, unless another place to cut the axes leaves clearly less padding; one long axis is
// cut into rows of 256.
plan plan_of(place const& t, std::string_view choice) {
  plan p{&t};
  p.number_bytes = bytes_of(t.type);
  std::int64_t const count = p.bytes() / p.number_bytes;
  if (count < 4096 || choose_codec(choice, t.type, 32, 256) == nullptr)
    return p;  // not worth a line in the header, or nothing to pack with
  double least = 0;
  auto consider = [&](std::int64_t columns) {
    codec const* const with = choose_codec(choice, t.type, count / columns, columns);
    double const numbers = stored_numbers(*with, count / columns, columns);
    if (columns * p.number_bytes * 32 > row_block_limit || (p.with != nullptr && numbers > 0.97 * least)) return;
    p.with = with, p.rows = count / columns, p.columns = columns, least = numbers;
  };
  std::int64_t columns = 1;
  for (std::size_t axis = t.shape.size(); axis > 0; --axis)
    if (t.shape[axis - 1] > 1) consider(columns *= t.shape[axis - 1]);
  if (count % 256 == 0 && t.shape.size() != 2) consider(256);
  if (p.with != nullptr) p.run_rows = run_rows_of(p.with->layout.tokens, p.columns * p.number_bytes);
  return p;
}

// Memory of a thread.
struct workplace {
  scratch numbers, floats, packed;
};
workplace& mine() {
  thread_local workplace w;
  return w;
}

// Numbers of a plan's type to a packed matrix in mine().packed.
pith::run_bytes pack_run(plan const& p, std::int64_t first, std::int64_t rows, input_file const& in, std::int64_t& bytes) {
  workplace& w = mine();
  std::int64_t const count = rows * p.columns, size = count * p.number_bytes;
  std::byte* numbers = w.numbers.of(size);
  if (auto const ok = in.read(p.tensor->begin + first * p.columns * p.number_bytes, {numbers, static_cast<std::size_t>(size)}); !ok)
    fail(in.path(), ok, about(p.tensor->name));
  if (p.with->rounds) {
    std::byte* const wide = w.floats.of(4 * count);
    to_floats(p.tensor->type, numbers, {reinterpret_cast<float*>(wide), static_cast<std::size_t>(count)});
    numbers = wide;
  }
  auto const made = p.with->pack(numbers, rows, p.columns, w.packed);
  if (!made) fail(in.path(), made.error(), about(p.tensor->name));
  bytes = made.value();
  return pith::split(p.with->layout, rows, p.columns, {w.packed.of(bytes, bytes), static_cast<std::size_t>(bytes)});
}

// Writes one file. Tensors are packed in the order in which they lie; those that are not smaller for it come last, as they are.
class compression {
 public:
  compression(input_file const& in, output_file& out, options const& with, threads& run, progress& shown)
      : in_(in), out_(out), with_(with), run_(run), shown_(shown) {
    auto head = pith::container::read_header(in);
    if (!head) fail(in.path(), head.error(), "the header");
    auto index = pith::safetensors::read_index(head.value(), in.size(), true);
    if (!index) fail(in.path(), index.error(), "the header");
    index_ = std::move(index).value();
    original_.assign(reinterpret_cast<char const*>(head.value().data()) + 8, head.value().size() - 8);
    for (auto const& [key, text] : index_.metadata)
      if (key.starts_with(pith::container::own_prefix))
        throw failure(bad_usage, in.path() + " is packed already, or has metadata called " + key);
    for (place const& t : index_.tensors)
      if (t.name == pith::container::table_name) throw failure(not_supported, in.path() + " has a tensor called " + t.name);
  }

  totals run() {
    writer to(out_, writer::header_bound(index_.tensors, index_.metadata, original_));
    std::vector<plan> plans;
    for (place const& t : index_.tensors) plans.push_back(plan_of(t, with_.codec));
    std::ranges::sort(plans, {}, [](plan const& p) { return std::pair(p.tensor->begin, p.tensor->end); });

    std::vector<plan const*> raw, small;
    for (plan const& p : plans) {
      if (p.with == nullptr) {
        raw.push_back(&p);
      } else if (p.runs() == 1) {
        small.push_back(&p);
        if (small.size() == 256) pack_small(to, small, raw), small.clear();
      } else {
        pack_small(to, small, raw), small.clear();
        if (!pack_large(to, p)) raw.push_back(&p);
      }
    }
    pack_small(to, small, raw);
    // Wider numbers first: so each begins at a multiple of its width, as readers like it.
    std::ranges::stable_sort(raw, std::greater<>(), [](plan const* p) { return p->number_bytes; });
    for (plan const* p : raw) copy(to, *p);

    auto const size = to.finish(index_.metadata, original_);
    if (!size) fail(out_.path(), size.error(), "the header");
    stop_if_asked();
    out_.commit(size.value());
    totals_.tensors = std::ssize(plans);
    totals_.bytes_before = in_.size();
    totals_.bytes_after = size.value();
    return totals_;
  }

 private:
  void check(status const& written, plan const& p) const {
    if (!written) fail(out_.path(), written, about(p.tensor->name));
  }
  pith::container::packing packing_of(plan const& p, std::int64_t bytes) const {
    return {p.with->name, 1, "dot", p.with->panel, p.rows, p.columns, p.tensor->type, p.tensor->shape, bytes};
  }
  void end(writer& to, writer::open_tensor& open, plan const& p, std::int64_t bytes) {
    check(to.end_packed(open, p.tensor->name, p.with->layout, packing_of(p, bytes)), p);
    ++totals_.packed;
  }

  // Tensors of one run each, several at once: each has its place when those before it have theirs.
  void pack_small(writer& to, std::vector<plan const*> const& some, std::vector<plan const*>& raw) {
    std::mutex one_at_a_time;
    pipeline turns;
    turns.run(run_, std::ssize(some), [&](std::int64_t i) {
      plan const& p = *some[static_cast<std::size_t>(i)];
      std::int64_t bytes = 0;
      pith::run_bytes const run = pack_run(p, 0, p.rows, in_, bytes);
      turns.wait(i);
      std::unique_lock lock(one_at_a_time);
      std::int64_t const stored = pith::container::stored_bytes(packing_of(p, bytes));
      if (stored >= p.bytes()) return raw.push_back(&p);
      writer::open_tensor open = to.begin();
      to.reserve(open, stored);
      lock.unlock();
      turns.pass(i);
      check(open.write_run(p.with->layout, 0, std::ssize(run.fixed), run), p);
      lock.lock();
      end(to, open, p, bytes);
      shown_.add(p.bytes());
    });
  }

  // A tensor of many runs; false if it is not smaller.
  bool pack_large(writer& to, plan const& p) {
    writer::open_tensor open = to.begin();
    std::int64_t tails = p.with->layout.fixed_bytes(p.rows, p.columns);
    pipeline turns;
    turns.run(run_, p.runs(), [&](std::int64_t i) {
      std::int64_t const first = i * p.run_rows, rows = std::min(p.run_rows, p.rows - first);
      std::int64_t bytes = 0;
      pith::run_bytes const run = pack_run(p, first, rows, in_, bytes);
      turns.wait(i);
      std::int64_t const tails_at = tails;
      tails += std::ssize(run.tails);
      turns.pass(i);
      check(open.write_run(p.with->layout, p.with->layout.fixed_bytes(first, p.columns), tails_at, run), p);
      shown_.add(rows * p.columns * p.number_bytes);
    });
    std::int64_t const bytes = tails + p.with->layout.padding(), stored = pith::container::stored_bytes(packing_of(p, bytes));
    if (stored >= p.bytes()) return shown_.add(-p.bytes()), false;
    to.reserve(open, stored);
    end(to, open, p, bytes);
    return true;
  }

  void copy(writer& to, plan const& p) {
    writer::open_tensor open = to.begin();
    to.reserve(open, p.bytes());
    pipeline().run(run_, pith::divide_up(p.bytes(), run_bytes_wanted), [&](std::int64_t i) {
      std::int64_t const at = i * run_bytes_wanted, size = std::min(run_bytes_wanted, p.bytes() - at);
      std::span<std::byte> const bytes(mine().numbers.of(size), static_cast<std::size_t>(size));
      if (auto const ok = in_.read(p.tensor->begin + at, bytes); !ok) fail(in_.path(), ok, about(p.tensor->name));
      check(open.write(at, bytes), p);
      shown_.add(size);
    });
    to.end(open, p.tensor->name, p.tensor->type, p.tensor->shape);
  }

  input_file const& in_;
  output_file& out_;
  options const& with_;
  threads& run_;
  progress& shown_;
  pith::safetensors::index index_;
  std::string original_;
  totals totals_;
};

std::int64_t bytes_before(entry const& e) { return e.packed ? e.packed->rows * e.packed->columns * bytes_of(e.type) : e.bytes; }

// The text of a header for tensors of which the file does not say what it was: by name, one behind the other.
std::string new_header(pith::container::index const& file, std::vector<std::int64_t>& begins) {
  using pith::container::json_text;
  std::string text = "{";
  std::int64_t at = 0;
  if (!file.metadata.empty()) {
    text += "\"__metadata__\":{";
    for (auto const& [key, value] : file.metadata) text += (text.back() == '{' ? "" : ",") + json_text(key) + ":" + json_text(value);
    text += "}";
  }
  for (entry const& e : file.tensors) {
    std::int64_t const bytes = bytes_before(e);
    text += (text.size() > 1 ? "," : "") + json_text(e.name) + ":{\"dtype\":" + json_text(e.type) + ",\"shape\":[";
    for (std::size_t i = 0; i < e.shape.size(); ++i) text += (i > 0 ? "," : "") + std::to_string(e.shape[i]);
    text += "],\"data_offsets\":[" + std::to_string(at) + "," + std::to_string(at + bytes) + "]}";
    begins.push_back(at);
    at += bytes;
  }
  text += "}";
  text.resize(static_cast<std::size_t>(pith::round_up(std::ssize(text), 8)), ' ');
  return text;
}

// Writes the tensors back, to where they were if the file says so. Sums are compared when a tensor has been read, of the bytes that were
// used.
class decompression {
 public:
  decompression(input_file const& in, output_file& out, threads& run, progress& shown) : in_(in), out_(out), run_(run), shown_(shown) {
    auto opened = pith::container::open(in);
    if (!opened) fail(in.path(), opened.error());
    file_ = std::move(opened).value();
  }

  totals run() {
    std::vector<std::int64_t> begins;
    std::string const text = file_.original ? *file_.original : new_header(file_, begins);
    if (file_.original) {
      auto const before = pith::container::original_index(text);  // that it can be read has been checked
      for (place const& t : before.value().tensors) begins.push_back(t.begin - 8 - std::ssize(text));
    }
    std::vector<std::byte> head(8 + text.size());
    pith::store_le(head.data(), static_cast<std::uint64_t>(text.size()));
    std::memcpy(head.data() + 8, text.data(), text.size());
    std::int64_t total = 0;
    for (entry const& e : file_.tensors) total += bytes_before(e);
    shown_.expect(total);
    if (auto const ok = out_.write(0, head); !ok) fail(out_.path(), ok, "the header");

    std::vector<std::size_t> order;
    for (std::size_t i = 0; i < file_.tensors.size(); ++i) order.push_back(i);
    std::ranges::sort(order, {}, [&](std::size_t i) { return file_.tensors[i].at; });
    std::int64_t size = std::ssize(head);
    for (std::size_t const i : order) {
      entry const& e = file_.tensors[i];
      std::int64_t const begin = std::ssize(head) + begins[i];
      size = std::max(size, begin + (e.packed ? unpack(e, begin) : copy(e, begin)));
    }
    stop_if_asked();
    out_.commit(size);
    totals_.tensors = std::ssize(file_.tensors);
    totals_.bytes_before = in_.size();
    totals_.bytes_after = size;
    return totals_;
  }

 private:
  // Damage first: what is wrong besides may well come from it.
  [[noreturn]] void wrong(entry const& e, status const& found) const {
    status const damage = pith::container::verify(in_, file_, e);
    fail(in_.path(), damage ? found : damage, about(e.name));
  }
  void write(entry const& e, std::int64_t at, std::span<std::byte const> bytes) const {
    if (auto const ok = out_.write(at, bytes); !ok) fail(out_.path(), ok, about(e.name));
  }
  void finish(entry const& e, pith::block_sums& sums) const {
    sums.finish(e.bytes);
    if (auto const ok = pith::container::compare(file_, e, sums.values()); !ok) fail(in_.path(), ok, about(e.name));
  }

  std::int64_t unpack(entry const& e, std::int64_t begin) {
    pith::container::packing const& p = *e.packed;
    codec const* const with = p.version == 1 && p.use == "dot" ? find_codec(p.codec, p.panel) : nullptr;
    std::vector<float> none;
    bool const known = with != nullptr && (with->type == e.type || (with->rounds && to_floats(e.type, nullptr, none)));
    if (!known)
      throw failure(not_supported, in_.path() + ": " + about(e.name) + ": no codec " + p.codec + " version " + std::to_string(p.version) +
                                       ", use " + p.use + ", panel " + std::to_string(p.panel) + ", for " + e.type);
    if (auto const ok = pith::container::check_packing(e, with->layout); !ok) wrong(e, ok);
    std::int64_t const number_bytes = bytes_of(e.type), run_rows = run_rows_of(with->layout.tokens, p.columns * number_bytes);
    if (p.columns * number_bytes * 32 > row_block_limit)
      throw failure(not_supported, in_.path() + ": " + about(e.name) + ": rows of " + std::to_string(p.columns) + " numbers");
    std::vector<pith::container::run> runs(static_cast<std::size_t>(pith::divide_up(p.rows, run_rows)));
    pith::block_sums sums(file_.block_bytes);
    pipeline().run(run_, std::ssize(runs), [&](std::int64_t i) {
      std::int64_t const first = i * run_rows, rows = std::min(run_rows, p.rows - first), count = rows * p.columns;
      std::int64_t const bound = with->layout.bound_bytes(rows, p.columns);
      std::span<std::byte> const memory(mine().packed.of(bound), static_cast<std::size_t>(bound));
      auto const read = pith::container::read_run(in_, e, with->layout, first, rows, memory,
                                                  [&](std::int64_t at, std::span<std::byte const> bytes) { sums.add(at, bytes); });
      if (!read) wrong(e, read.error());
      runs[static_cast<std::size_t>(i)] = read.value();
      std::byte* numbers = mine().numbers.of(count * number_bytes);
      std::byte* const unpacked = with->rounds ? mine().floats.of(4 * count) : numbers;
      if (auto const ok = with->unpack(memory.first(static_cast<std::size_t>(read.value().bytes)), rows, p.columns, unpacked); !ok)
        wrong(e, {ok.code, e.at + read.value().fixed_at + std::min(ok.at, read.value().fixed)});
      if (with->rounds) from_floats(e.type, {reinterpret_cast<float const*>(unpacked), static_cast<std::size_t>(count)}, numbers);
      write(e, begin + first * p.columns * number_bytes, {numbers, static_cast<std::size_t>(count * number_bytes)});
      shown_.add(count * number_bytes);
    });
    // The runs' tails lie behind one another, and behind them zeros and nothing else.
    std::int64_t end = with->layout.fixed_bytes(p.rows, p.columns);
    for (auto const& r : runs) {
      if (with->layout.has_tails && r.tails.begin != end) wrong(e, {pith::errc::bad_format, e.at + r.fixed_at});
      if (with->layout.has_tails) end = r.tails.end;
    }
    if (end + with->layout.padding() != p.bytes) wrong(e, {pith::errc::bad_format, e.at + end});
    auto const rest = pith::container::read_bytes(in_, e.at + end, e.bytes - end);
    if (!rest) fail(in_.path(), rest.error(), about(e.name));
    sums.add(end, rest.value());
    finish(e, sums);
    for (std::int64_t i = 0; i < std::ssize(rest.value()); ++i)
      if (rest.value()[static_cast<std::size_t>(i)] != std::byte{0}) wrong(e, {pith::errc::bad_format, e.at + end + i});
    ++totals_.packed;
    return bytes_before(e);
  }

  std::int64_t copy(entry const& e, std::int64_t begin) {
    pith::block_sums sums(file_.block_bytes);
    pipeline().run(run_, pith::divide_up(e.bytes, run_bytes_wanted), [&](std::int64_t i) {
      std::int64_t const at = i * run_bytes_wanted, size = std::min(run_bytes_wanted, e.bytes - at);
      std::span<std::byte> const bytes(mine().numbers.of(size), static_cast<std::size_t>(size));
      if (auto const ok = in_.read(e.at + at, bytes); !ok) fail(in_.path(), ok, about(e.name));
      sums.add(at, bytes);
      write(e, begin + at, bytes);
      shown_.add(size);
    });
    finish(e, sums);
    return e.bytes;
  }

  input_file const& in_;
  output_file& out_;
  threads& run_;
  progress& shown_;
  pith::container::index file_;
  totals totals_;
};

}  // namespace

totals compress_file(std::string const& from, std::string const& to, options const& with, threads& run) {
  input_file const in(from);
  output_file out(to, with.force);
  progress shown("compress", in.size(), with.quiet);
  return compression(in, out, with, run, shown).run();
}
totals decompress_file(std::string const& from, std::string const& to, options const& with, threads& run) {
  input_file const in(from);
  output_file out(to, with.force);
  progress shown("decompress", in.size(), with.quiet);
  return decompression(in, out, run, shown).run();
}

}  // namespace tool
