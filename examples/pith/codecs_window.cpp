// SPDX-License-Identifier: Apache-2.0
#include "packed_codec.hpp"
#include "pith/codec/exponent_window.hpp"

std::vector<tool::codec> tool::window_codecs() { return lossless_codecs<pith::exponent_window, 64>("window"); }
