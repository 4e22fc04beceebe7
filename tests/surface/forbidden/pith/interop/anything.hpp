// SPDX-License-Identifier: Apache-2.0
// Breaks no rule.
#pragma once

#include <nlohmann/json.hpp>
