// SPDX-License-Identifier: Apache-2.0
#include "packed_codec.hpp"
#include "pith/codec/exponent_rans.hpp"

std::vector<tool::codec> tool::rans_codecs() { return lossless_codecs<pith::rans_exponents>("rans"); }
