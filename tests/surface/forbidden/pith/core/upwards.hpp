// SPDX-License-Identifier: Apache-2.0
// Breaks three rules: an arrow that points the wrong way, a heavy header, a file that does not exist.
#pragma once

#include <iostream>

#include "pith/codec/unguarded.hpp"
#include "absent.hpp"
