// SPDX-License-Identifier: Apache-2.0
// The kernels of a device's cache, compiled for a device in the ordinary test run: without spills and without a stack.
#include "pith/codec/hadamard.hpp"
#include "pith/codec/permute.hpp"
#include "pith/cuda/cache.hpp"
#include "pith/cuda/environment.cuh"

namespace composition {

using pith::bf16;
namespace device = pith::device;

struct kivi : pith::kv_cache<pith::head_dim<128>, pith::keys<pith::int4<pith::per_channel<32>>>, pith::values<pith::int4<pith::per_token<64>>>,
                             pith::raw<pith::first<4>, pith::last<32>>, pith::on<pith::cuda>> {};
struct sided : pith::kv_cache<pith::head_dim<128>, pith::keys<pith::pipe<pith::permute, pith::int8<pith::per_token<64>>>>,
                              pith::values<pith::pipe<pith::hadamard<128>, pith::int4<pith::per_token<64>>>>, pith::raw<pith::last<32, 64>>,
                              pith::side<pith::liveness, pith::bias>, pith::non_finite<pith::nan_policy::propagate>, pith::on<pith::cuda>> {};

template <class Recipe, device::part Part>
using seal = device::encode_kernel<typename device::sealed_tiles<Recipe, Part, bf16>::tile, device::sealed_tiles<Recipe, Part, bf16>>;

// Reads everything that a source shows.
template <class Recipe>
struct read_kernel {
  static constexpr int threads = 32;
  device::cache_source<Recipe> source;
  float* out;

  template <device::device_like Thread>
  PITH_HD void operator()(Thread& t) const {
    auto const head = source.at(t.block_x(), static_cast<int>(t.block_y()));
    std::int64_t lower = 0, upper = 0;
    source.limits(t.block_x(), t.lane(), 128, &lower, &upper);
    float sum = static_cast<float>(source.packed_blocks(t.block_x()) + source.raw_blocks(t.block_x()));
    for (std::int64_t slot = lower; slot < upper; ++slot) {
      if (!head.visible(slot)) continue;
      std::byte const* const page = head.page(t, slot / Recipe::page::tokens);
      std::byte const* const raw = slot < head.sealed_keys() ? page : head.staging_keys(slot);
      if (raw != nullptr) sum += static_cast<float>(device::load_word<std::uint32_t>(raw)) + head.bias(slot);
    }
    if constexpr (pith::is_calibrated<typename Recipe::page::key_tile>) sum += head.key_state().order[t.lane()];
    out[t.lane()] = sum;
  }
};

}  // namespace composition

template __global__ void pith::device::run_kernel<composition::seal<composition::kivi, pith::device::part::keys>>(__grid_constant__ composition::seal<composition::kivi, pith::device::part::keys> const);
template __global__ void pith::device::run_kernel<composition::seal<composition::kivi, pith::device::part::values>>(__grid_constant__ composition::seal<composition::kivi, pith::device::part::values> const);
template __global__ void pith::device::run_kernel<composition::seal<composition::sided, pith::device::part::keys>>(__grid_constant__ composition::seal<composition::sided, pith::device::part::keys> const);
template __global__ void pith::device::run_kernel<composition::seal<composition::sided, pith::device::part::values>>(__grid_constant__ composition::seal<composition::sided, pith::device::part::values> const);
template __global__ void pith::device::run_kernel<pith::device::append_rows_kernel<composition::kivi, pith::bf16, pith::bf16>>(__grid_constant__ pith::device::append_rows_kernel<composition::kivi, pith::bf16, pith::bf16> const);
template __global__ void pith::device::run_kernel<pith::device::append_rows_kernel<composition::sided, float, pith::f16>>(__grid_constant__ pith::device::append_rows_kernel<composition::sided, float, pith::f16> const);
template __global__ void pith::device::run_kernel<pith::device::load_chunk_kernel<composition::kivi, pith::bf16, pith::bf16>>(__grid_constant__ pith::device::load_chunk_kernel<composition::kivi, pith::bf16, pith::bf16> const);
template __global__ void pith::device::run_kernel<pith::device::cut_rows_kernel<composition::sided>>(__grid_constant__ pith::device::cut_rows_kernel<composition::sided> const);
template __global__ void pith::device::run_kernel<pith::device::reset_side_kernel<composition::sided>>(__grid_constant__ pith::device::reset_side_kernel<composition::sided> const);
template __global__ void pith::device::run_kernel<pith::device::ascending_kernel>(__grid_constant__ pith::device::ascending_kernel const);
template __global__ void pith::device::run_kernel<pith::device::word_kernel>(__grid_constant__ pith::device::word_kernel const);
template __global__ void pith::device::run_kernel<pith::device::copy_kernel>(__grid_constant__ pith::device::copy_kernel const);
template __global__ void pith::device::run_kernel<pith::device::upload_kernel>(__grid_constant__ pith::device::upload_kernel const);
template __global__ void pith::device::run_kernel<composition::read_kernel<composition::kivi>>(__grid_constant__ composition::read_kernel<composition::kivi> const);
template __global__ void pith::device::run_kernel<composition::read_kernel<composition::sided>>(__grid_constant__ composition::read_kernel<composition::sided> const);
