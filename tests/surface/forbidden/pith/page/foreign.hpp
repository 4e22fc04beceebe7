// SPDX-License-Identifier: Apache-2.0
// Breaks one rule: nobody includes interop/. The line "#include <regex>" in a comment breaks none.
#pragma once

// #include <regex>
#include "pith/interop/anything.hpp"
