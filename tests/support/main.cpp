// SPDX-License-Identifier: Apache-2.0
// The tests' main, for a Catch2 that is installed without its own.
#define CATCH_CONFIG_MAIN
#include "catch.hpp"
