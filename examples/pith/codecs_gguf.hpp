// SPDX-License-Identifier: Apache-2.0
// GGUF types and the codecs that hold their numbers.
#pragma once

#include "codecs.hpp"
#include "pith/interop/gguf_weights.hpp"

namespace tool {

struct gguf_codec {
  pith::gguf::type type;
  codec with;  // pack is null
  pith::result<std::int64_t> (*pack)(pith::gguf::tensor const& from, scratch& to);
};
std::vector<gguf_codec> const& gguf_codecs();

}  // namespace tool
