// SPDX-License-Identifier: Apache-2.0
// The emulator in a .cu file, to compare a kernel on the device with the same kernel on the host.
#pragma once

// A kernel's body is a function of host and device; with the emulator's thread it exists on the host alone, which nvcc warns of. The files
// that compile kernels without the emulator keep the warning.
#pragma nv_diag_suppress 20011, 20013, 20014

#include "tests/cuda/emulated_environment.hpp"
