// SPDX-License-Identifier: Apache-2.0
// The CUDA backend: environment, memory, attention over pages and its statistics, caches, packed weights, encode and decode of tiles.
// Include it in .cu files; nothing of the CPU backend comes with it. Codecs are included by name, as in pith.hpp's list.
#pragma once

#include "pith/cuda/arena.cuh"
#include "pith/cuda/attention_statistics.hpp"
#include "pith/cuda/cache.hpp"
#include "pith/cuda/device_thread.cuh"
#include "pith/cuda/encode.hpp"
#include "pith/cuda/environment.cuh"
#include "pith/cuda/packed_matrix.hpp"
#include "pith/cuda/paged_attention.hpp"
