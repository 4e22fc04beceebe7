// SPDX-License-Identifier: Apache-2.0
// The launches of a product with packed weights on a device: x is laid down, runs of steps are multiplied, and their sums come together.
// Everything lies in the environment's scratch. More rows of x than a pass holds take passes one after the other.
//
//   integer accuracy   passes of 64 rows        exact accuracy   of 32 (its x has twice the bytes)        fewer where panels are wide
//
// A run is as short as fills the device, but no shorter than what makes its partial sums fewer bytes than its weights.
#pragma once

#include <algorithm>
#include <span>

#include "pith/core/status.hpp"
#include "pith/cuda/environment.hpp"
#include "pith/cuda/linear_kernel.hpp"
#include "pith/cuda/linear_merge.hpp"
#include "pith/cuda/window_feed.hpp"

namespace pith {
namespace device {

// How a pass is divided.
struct linear_plan {
  std::int64_t row_blocks, groups, steps_of_group, steps, run, blocks;
  std::int64_t partial_at, bytes;  // of scratch
};

template <class Tile, class Accuracy>
struct linear_launch {
  static constexpr int terms = terms_of<Accuracy>;
  template <int NT, int Chunks>
  using form = linear_form<Tile, NT, Chunks, terms>;

  static constexpr bool fits = form<1, 1>::fits;
  static constexpr int most_rows = terms == 1 && form<4, 2>::fits ? 64 : form<4, 1>::fits ? 32 : form<2, 1>::fits ? 16 : 8;

  // f(NT, Chunks) as constants, for a pass of `rows` rows.
  template <class F>
  static auto with_form(std::int64_t rows, F const& f) {
    if constexpr (most_rows >= 64)
      if (rows > 32) return f(std::integral_constant<int, 4>{}, std::integral_constant<int, 2>{});
    if constexpr (most_rows >= 32)
      if (rows > 16) return f(std::integral_constant<int, 4>{}, std::integral_constant<int, 1>{});
    if constexpr (most_rows >= 16)
      if (rows > 8) return f(std::integral_constant<int, 2>{}, std::integral_constant<int, 1>{});
    return f(std::integral_constant<int, 1>{}, std::integral_constant<int, 1>{});
  }

  template <class Form>
  static linear_plan plan_of(int multiprocessors, packed_tiles<Tile> const& w, std::int64_t rows) {
    linear_plan p{};
    p.row_blocks = divide_up(w.rows, block_tokens);
    p.groups = divide_up(p.row_blocks, Form::warps);
    p.steps_of_group = w.panels() * Form::pieces;
    p.steps = p.groups * p.steps_of_group;
    std::int64_t const resident = std::int64_t{multiprocessors} * Form::min_blocks;
    std::int64_t const weight_bytes = Form::warps * Form::feed::piece_bytes / Form::feed::blocks, partial_bytes = rows * Form::group_rows * 4;
    p.run = round_up(std::max(divide_up(p.steps, resident), divide_up(partial_bytes, weight_bytes)), Form::feed::least_run);
    p.blocks = divide_up(p.steps, p.run);
    p.partial_at = round_up(p.steps_of_group * Form::x_bytes, 128);
    p.bytes = p.partial_at + (p.blocks + p.groups - 1) * partial_bytes;
    return p;
  }

  static std::int64_t scratch_bytes(int multiprocessors, packed_tiles<Tile> const& w, std::int64_t batch) {
    std::int64_t most = 0;
    auto const ask = [&](std::int64_t rows) {
      if (rows > 0)
        most = std::max(most, with_form(rows, [&](auto nt, auto chunks) { return plan_of<form<nt, chunks>>(multiprocessors, w, rows).bytes; }));
    };
    ask(std::min<std::int64_t>(batch, most_rows));
    ask(batch > most_rows ? batch % most_rows : 0);
    return most;
  }

  template <class Feed, environment Environment>
  static typename Feed::matrix matrix_of(Environment const& env, packed_tiles<Tile> const& w) {
    if constexpr (packed_tiles<Tile>::has_tails)
      return {w.data, w.fixed_bytes(), w.size, env.status_word()};
    else
      return {w.data};
  }

  // At most `most_rows` rows of x.
  template <environment Environment, class X, class O>
  static status pass(Environment const& env, packed_tiles<Tile> const& w, matrix_view<X const, space::device> x,
                     matrix_view<O, space::device> out, tensor_view<float const, 1, space::device> bias) {
    return with_form(x.extent[0], [&](auto nt, auto chunks) -> status {
      using multiply = linear_kernel<Tile, nt, chunks, terms>;
      using lay_down = linear_x_kernel<Tile, nt, chunks, terms, X>;
      using merge = linear_merge_kernel<O>;
      using chosen = typename multiply::form;
      linear_plan const p = plan_of<chosen>(env.multiprocessors(), w, x.extent[0]);
      std::byte* const prepared = env.scratch().data();
      auto* const partial = reinterpret_cast<float*>(prepared + p.partial_at);
      auto const batch = static_cast<std::int32_t>(x.extent[0]);
      if (status const ok = env.launch(lay_down{x, prepared},
                                       {.x = w.panels(), .y = chosen::rows / lay_down::warps, .shared_bytes = lay_down::shared_bytes});
          !ok)
        return ok;
      multiply const product{.weights = matrix_of<typename chosen::feed>(env, w),
                             .x = prepared,
                             .partial = partial,
                             .steps = p.steps,
                             .run = p.run,
                             .row_blocks = static_cast<std::int32_t>(p.row_blocks),
                             .steps_of_group = static_cast<std::int32_t>(p.steps_of_group),
                             .batch = batch};
      if (status const ok = env.launch(product, {.x = p.blocks, .shared_bytes = multiply::shared_bytes}); !ok) return ok;
      merge const last{partial, out, bias, p.steps_of_group, p.run, chosen::group_rows, batch};
      return env.launch(last, {.x = divide_up(w.rows, merge::threads), .y = batch});
    });
  }
};

}  // namespace device

template <class Tile, class Accuracy>
struct linear_engine<cuda, Tile, Accuracy> {
  using launch = device::linear_launch<Tile, Accuracy>;

  template <device::environment Environment>
  static std::int64_t scratch_bytes(Environment const& env, packed_tiles<Tile> const& w, std::int64_t batch) {
    return launch::scratch_bytes(env.multiprocessors(), w, batch);
  }

  // errors  capacity_exceeded  the scratch is too small; `at` is scratch_bytes. Else what launching gives
  template <device::environment Environment, class X, class O>
  static status multiply(Environment const& env, packed_tiles<Tile> const& w, matrix_view<X const, space::device> x,
                         matrix_view<O, space::device> out, tensor_view<float const, 1, space::device> bias) {
    std::int64_t const batch = x.extent[0], wanted = scratch_bytes(env, w, batch);
    if (std::span<std::byte> const scratch = env.scratch(); static_cast<std::int64_t>(scratch.size()) < wanted)
      return {errc::capacity_exceeded, wanted};
    for (std::int64_t first = 0; first < batch; first += launch::most_rows) {
      std::int64_t const rows = std::min<std::int64_t>(batch - first, launch::most_rows);
      if (status const ok = launch::pass(env, w, x.part(first, rows), out.part(first, rows), bias); !ok) return ok;
    }
    return {};
  }
};

}  // namespace pith
