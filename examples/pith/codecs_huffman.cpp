// SPDX-License-Identifier: Apache-2.0
#include "packed_codec.hpp"
#include "pith/codec/huffman.hpp"

std::vector<tool::codec> tool::huffman_codecs() { return lossless_codecs<pith::huffman>("huffman"); }
