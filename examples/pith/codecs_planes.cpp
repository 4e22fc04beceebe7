// SPDX-License-Identifier: Apache-2.0
#include "packed_codec.hpp"
#include "pith/codec/exponent_planes.hpp"

std::vector<tool::codec> tool::planes_codecs() { return lossless_codecs<pith::exponent_planes, 64>("planes"); }
