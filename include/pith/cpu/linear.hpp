// SPDX-License-Identifier: Apache-2.0
// Products with packed weights on the CPU: dot or mix over the tiles, in the order in which they lie, sums in a small f32 block.
//
//   multiply              up to 16 rows of x are prepared once, panel by panel (rounded, permuted, transformed); then every tile is read
//                         once and meets them in blocks of 8, 4, 2 or 1 rows. A task of the executor is a run of row blocks.
//   multiply_transposed   a task is one panel and goes down its row blocks. Integer weights of mix are unsigned, so integer accuracy mixes
//                         the positive and the negative part of x apart: 8 rows of x at a time.
//
// The order of every sum is fixed by the shapes: results do not depend on the executor.
#pragma once

#include <algorithm>
#include <new>

#include "pith/codec/pipe.hpp"
#include "pith/core/view.hpp"
#include "pith/cpu/mix_integer.hpp"
#include "pith/cpu/tile_engine.hpp"
#include "pith/linear/linear_engine.hpp"

namespace pith {
inline namespace PITH_ISA {

// What a kernel of M rows asks for: the next tile, if it fits into half a cache. Two rows or more leave time for it; for one row the machine's
// own prefetching was faster, and only the scales are asked for. Lossless tiles are asked for three sections ahead, by any kernel: taking them
// apart leaves too few loads waiting at a time (docs/benchmarks.md).
template <class Storage, int M>
constexpr auto ask_for() {
  if constexpr (requires { Storage::section_bytes; })
    return ask_near{static_cast<std::uintptr_t>(3 * Storage::section_bytes)};
  else if constexpr (M < 2)
    return ask_nothing{};
  else
    return ask_ahead{static_cast<std::uintptr_t>(std::min<std::int64_t>(Storage::bytes, 8192))};
}

template <class Tile, class Accuracy>
struct cpu_linear {
  using storage = typename Tile::storage;
  using tiles = packed_tiles<Tile>;
  static constexpr bool in_integers = std::is_same_v<Accuracy, integer_accuracy>;
  static constexpr int tokens = Tile::tokens, channels = Tile::channels;
  static constexpr int rows_at_once = 16;                          // of x in one pass over the matrix
  static constexpr int most_rows = simd::width * 2 >= 32 ? 8 : 4;  // of one kernel: 2 * 8 accumulators need 32 registers
  static constexpr std::int64_t task_bytes = 1 << 17;              // of packed weights, at least

  template <int M>
  using dot = dot_kernel<storage, Accuracy, M>;
  // Only integer codes gain from rounding x.
  template <int M>
  using mix = mix_kernel<storage, std::conditional_t<requires { storage::middle; }, Accuracy, exact_accuracy>, M>;

  // The kernels of one pass: block b has `size` rows from row `first` on, its prepared panels lie `bytes` apart from `at` on.
  struct row_group {
    int first, size;
    std::int64_t at, bytes;
    void (*prepare)(float const* q, std::byte* to);
    void (*run)(std::byte const* tile, std::byte const* query, float* sums);
    void (*run_expanded)(std::byte const* raw, std::byte const* query, float* sums);
  };
  struct pass {
    row_group group[rows_at_once];
    int groups = 0;
    std::int64_t bytes = 0;

    pass(int rows, std::int64_t panels) {
      for (int first = 0; first < rows; first += group[groups - 1].size) {
        int const left = std::min(rows - first, most_rows);
        group[groups] = left == 1 ? of<1>() : left == 2 ? of<2>() : left <= 4 ? of<4>() : of<most_rows>();
        group[groups].first = first;
        group[groups].at = bytes;
        bytes += panels * group[groups].bytes;
        ++groups;
      }
    }
    template <int M>
    static row_group of() {
      return {.first = 0,
              .size = M,
              .at = 0,
              .bytes = round_up(sizeof(typename dot<M>::query), 64),
              .prepare = &cpu_linear::prepare<M>,
              .run = &cpu_linear::add<M>,
              .run_expanded = &cpu_linear::add_expanded<M>};
    }
  };

  template <int M>
  static void prepare(float const* q, std::byte* to) {
    using query = typename dot<M>::query;
    dot<M>::prepare(q, *::new (static_cast<void*>(to)) query);
  }

  // sums [m][token] += dot
  template <int M>
  static void add(std::byte const* tile, std::byte const* query, float* sums) {
    alignas(64) float scores[M][tokens];
    auto const& q = *std::launder(reinterpret_cast<typename dot<M>::query const*>(query));
    auto const tile_at = [=](int t) { return tile + t / dot<M>::storage::tokens * storage::bytes; };
    dot_tiles<dot<M>>(tokens, tile_at, q, scores[0], tokens, ask_for<storage, M>());
    for (int i = 0; i < M * tokens; i += simd::width) simd::store(sums + i, simd::load(sums + i) + simd::load(scores[0] + i));
  }

  // Tiles that are worth expanding into raw ones when more than one kernel reads them.
  static constexpr bool expands = requires { typename dot<1>::over_raw; };
  static constexpr std::int64_t expanded_bytes = [] {
    if constexpr (expands)
      return std::int64_t{raw_form<storage>::bytes};
    else
      return std::int64_t{1};
  }();
  template <int M>
  static void add_expanded([[maybe_unused]] std::byte const* raw, [[maybe_unused]] std::byte const* query, [[maybe_unused]] float* sums) {
    if constexpr (expands) {
      alignas(64) float scores[M][tokens];
      dot<M>::over_raw::run(raw, *std::launder(reinterpret_cast<typename dot<M>::query const*>(query)), scores[0], tokens);
      for (int i = 0; i < M * tokens; i += simd::width) simd::store(sums + i, simd::load(sums + i) + simd::load(scores[0] + i));
    }
  }

  static std::int64_t scratch_bytes(tiles const& w, std::int64_t batch) {
    std::int64_t most = 0;
    for (int rows = 1; rows <= std::min<std::int64_t>(batch, rows_at_once); ++rows) most = std::max(most, pass(rows, w.panels()).bytes);
    return most;
  }

  template <class X, class O, class Executor>
  static void multiply(tiles const& w, matrix_view<X> x, matrix_view<O> out, float const* bias, std::byte* scratch, Executor& run) {
    for (std::int64_t first = 0; first < x.extent[0]; first += rows_at_once) {
      int const rows = static_cast<int>(std::min<std::int64_t>(rows_at_once, x.extent[0] - first));
      multiply_pass(w, x.part(first, rows), out.part(first, rows), bias, scratch, run);
    }
  }

  template <class X, class O, class Executor>
  static void multiply_pass(tiles const& w, matrix_view<X> x, matrix_view<O> out, float const* bias, std::byte* scratch, Executor& run) {
    int const rows = static_cast<int>(x.extent[0]);
    pass const plan(rows, w.panels());
    float start[rows_at_once];
    for (int m = 0; m < rows; ++m) start[m] = sum_start(x, m);
    auto const prepare_panel = [&](std::int64_t panel) {
      alignas(64) float q[most_rows][channels];
      for (int g = 0; g < plan.groups; ++g) {
        row_group const& group = plan.group[g];
        for (int m = 0; m < group.size; ++m) {
          bool const filled = group.first + m < rows && !(in_integers && is_nan(start[group.first + m]));
          load(x, filled ? group.first + m : -1, panel * channels, channels, q[m]);
          if constexpr (is_transformed<Tile>) Tile::transform_query(q[m]);
        }
        group.prepare(q[0], scratch + group.at + panel * group.bytes);
      }
    };
    if (rows * w.panels() < 64)  // shorter than starting threads
      for (std::int64_t panel = 0; panel < w.panels(); ++panel) prepare_panel(panel);
    else
      run.for_each(w.panels(), prepare_panel);

    std::int64_t const panels = w.panels(), task_blocks = divide_up(task_bytes, panels * Tile::bytes),
                       tasks = divide_up(w.row_blocks(), task_blocks);
    run.for_each(tasks, [&](std::int64_t task) {
      alignas(64) float sums[rows_at_once][tokens];
      for (std::int64_t block = task * task_blocks; block < std::min(w.row_blocks(), (task + 1) * task_blocks); ++block) {
        for (int m = 0; m < rows_at_once; ++m) std::fill_n(sums[m], tokens, m < rows ? start[m] : 0.0f);
        std::byte const* tile = w.at(block, 0);
        for (std::int64_t panel = 0; panel < panels; ++panel, tile += Tile::bytes) {
          if constexpr (requires { storage::scale_at; })
            if (rows == 1) ask_for_parameters<storage>(tile + 2 * Tile::bytes, [](std::byte const* at) { simd::prefetch(at); });
          bool const expanded = expands && plan.groups > 1;
          alignas(64) std::byte raw[expanded_bytes];
          if constexpr (expands)
            if (expanded) expand_tile<storage>(tile, raw, ask_ahead{static_cast<std::uintptr_t>(Tile::bytes)});
          for (int g = 0; g < plan.groups; ++g) {
            row_group const& group = plan.group[g];
            (expanded ? group.run_expanded : group.run)(expanded ? raw : tile, scratch + group.at + panel * group.bytes, sums[group.first]);
          }
        }
        for (int m = 0; m < rows; ++m) save(sums[m], bias, out, m, block * tokens, std::min<std::int64_t>(tokens, w.rows - block * tokens));
      }
    });
  }

  static constexpr int parts = in_integers ? 2 : 1;  // of a row of x in a transposed product: positive and negative
  static constexpr int transposed_rows = rows_at_once / parts;

  static int mixed_rows(int rows) {
    return rows * parts <= 2 ? rows * parts : static_cast<int>(round_up(rows * parts, rows * parts <= 4 ? 4 : most_rows));
  }
  static std::int64_t transposed_scratch_bytes(tiles const& w, std::int64_t batch) {
    int const rows = static_cast<int>(std::min<std::int64_t>(batch, transposed_rows));
    return static_cast<std::int64_t>(sizeof(float)) * mixed_rows(rows) * w.row_blocks() * tokens;
  }

  template <class X, class O, class Executor>
  static void multiply_transposed(tiles const& w, matrix_view<X> x, matrix_view<O> out, float const* bias, std::byte* scratch,
                                  Executor& run) {
    for (std::int64_t first = 0; first < x.extent[0]; first += transposed_rows) {
      int const rows = static_cast<int>(std::min<std::int64_t>(transposed_rows, x.extent[0] - first));
      transposed_pass(w, x.part(first, rows), out.part(first, rows), bias, scratch, run);
    }
  }

  template <class X, class O, class Executor>
  static void transposed_pass(tiles const& w, matrix_view<X> x, matrix_view<O> out, float const* bias, std::byte* scratch, Executor& run) {
    int const rows = static_cast<int>(x.extent[0]), mixed = mixed_rows(rows);
    std::int64_t const stride = w.row_blocks() * tokens;  // weights [mixed row][row of W]: parts of one row of x are neighbours
    float start[rows_at_once];
    auto* const weights = reinterpret_cast<float*>(scratch);
    for (int m = 0; m < mixed; ++m) {
      int const row = m / parts;
      float* const to = weights + m * stride;
      if (row < rows) start[row] = sum_start(x, row);
      load(x, row < rows && !(in_integers && is_nan(start[row])) ? row : -1, 0, stride, to);
      if constexpr (in_integers)
        for (std::int64_t r = 0; r < stride; ++r) to[r] = m % 2 == 0 ? std::max(to[r], 0.0f) : std::max(-to[r], 0.0f);
    }
    auto const run_mix = mixed == 1 ? &mix_panel<1> : mixed == 2 ? &mix_panel<2> : mixed <= 4 ? &mix_panel<4> : &mix_panel<most_rows>;
    int const step = mixed <= 2 ? mixed : mixed <= 4 ? 4 : most_rows;
    run.for_each(w.panels(), [&](std::int64_t panel) {
      alignas(64) float sums[rows_at_once][channels];
      for (int m = 0; m < mixed; ++m) std::fill_n(sums[m], channels, m % parts == 0 && m / parts < rows ? start[m / parts] : 0.0f);
      for (std::int64_t block = 0; block < w.row_blocks(); ++block)
        for (int m = 0; m < mixed; m += step) run_mix(w.at(block, panel), weights + m * stride + block * tokens, stride, sums[m]);
      for (int m = 0; m < rows; ++m) {
        float* const sum = sums[m * parts];
        if constexpr (in_integers)
          for (int c = 0; c < channels; ++c) sum[c] -= sums[m * parts + 1][c];
        if constexpr (is_transformed<Tile>) Tile::restore_output(sum);
        save(sum, bias, out, m, panel * channels, std::min<std::int64_t>(channels, w.columns - panel * channels));
      }
    });
  }

  template <int M>
  static void mix_panel(std::byte const* tile, float const* weights, std::int64_t stride, float* sums) {
    float near[M][tokens];
    for (int m = 0; m < M; ++m) std::copy_n(weights + m * stride, tokens, near[m]);
    mix<M>::run(tile, near[0], tokens, sums);
  }

  // Integers know neither NaN nor infinity: a row with one starts from NaN, and its numbers count as zeros.
  template <class X>
  static float sum_start(matrix_view<X> x, std::int64_t row) {
    if constexpr (in_integers)
      for (std::int64_t c = 0; c < x.extent[1]; ++c)
        if (!is_finite(to_float(x.data[row * x.stride[0] + c * x.stride[1]]))) return bits_float(0x7fc00000u);
    return 0;
  }

  // to[i] = x(row, from + i), zero behind its end; row -1 is zero everywhere.
  template <class X>
  static void load(matrix_view<X> x, std::int64_t row, std::int64_t from, std::int64_t count, float* to) {
    std::int64_t const inside = row < 0 ? 0 : std::clamp<std::int64_t>(x.extent[1] - from, 0, count);
    X* const first = x.data + (inside > 0 ? row * x.stride[0] + from * x.stride[1] : 0);
    if (x.stride[1] == 1)
      for (std::int64_t i = 0; i < inside; ++i) to[i] = to_float(first[i]);
    else
      for (std::int64_t i = 0; i < inside; ++i) to[i] = to_float(first[i * x.stride[1]]);
    std::fill(to + inside, to + count, 0.0f);
  }
  template <class O>
  static void save(float const* sums, float const* bias, matrix_view<O> out, std::int64_t row, std::int64_t from, std::int64_t count) {
    O* const first = out.data + row * out.stride[0] + from * out.stride[1];
    for (std::int64_t i = 0; i < count; ++i) first[i * out.stride[1]] = from_float<O>(sums[i] + (bias != nullptr ? bias[from + i] : 0.0f));
  }
};

}  // namespace PITH_ISA

template <class Tile, class Accuracy>
struct linear_engine<cpu, Tile, Accuracy> : cpu_linear<Tile, Accuracy> {};

}  // namespace pith
