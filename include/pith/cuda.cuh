// SPDX-License-Identifier: Apache-2.0
// The CUDA backend, for .cu files. It brings no xsimd and no CPU kernels along.
#pragma once

#include "pith/cuda/arena.cuh"
#include "pith/cuda/environment.cuh"
