// SPDX-License-Identifier: Apache-2.0
// Everything host-side, the CPU backend included. Never pulls in CUDA.
#pragma once

#include "pith/cache/kv_cache.hpp"
#include "pith/cache/recipes.hpp"
#include "pith/cache/select_cache.hpp"
#include "pith/codec/balance.hpp"
#include "pith/codec/block_float.hpp"
#include "pith/codec/float8.hpp"
#include "pith/codec/hadamard.hpp"
#include "pith/codec/integer.hpp"
#include "pith/codec/kv_page.hpp"
#include "pith/codec/outliers.hpp"
#include "pith/codec/permute.hpp"
#include "pith/codec/pipe.hpp"
#include "pith/codec/raw.hpp"
#include "pith/codec/rotate.hpp"
#include "pith/codec/sum.hpp"
#include "pith/core/version.hpp"
#include "pith/cpu/attention.hpp"
#include "pith/cpu/linear.hpp"
#include "pith/cpu/paged_attention.hpp"
#include "pith/linear/packed_matrix.hpp"
