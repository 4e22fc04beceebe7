// SPDX-License-Identifier: Apache-2.0
// Published weight formats by name, as codecs.
#pragma once

#include "pith/codec/integer.hpp"
#include "pith/codec/outliers.hpp"
#include "pith/codec/sum.hpp"

namespace pith::recipes {

// SpQR: groups of 16 inputs in 3 bits, a few weights of every row kept apart. Largest magnitudes of every Row inputs: Outliers of them.
// from     Dettmers et al., SpQR: A Sparse-Quantized Representation for Near-Lossless LLM Weight Compression, 2023
// differs  scales and zeros are f16, not 3-bit codes with a second level (5 bits per weight where the paper has 3.6,
//          outliers apart); a fixed number of outliers per row, by magnitude, not by their effect on the output; no Hessian: every weight
//          is rounded to the nearest
template <int Outliers = 2, int Row = 128>
using spqr = sum<outliers<magnitudes<Outliers>, per_token<Row>>, integer<3, per_token<16>>>;

}  // namespace pith::recipes
