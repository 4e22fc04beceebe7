// SPDX-License-Identifier: Apache-2.0
// The example model and its held-out text, read once.
#pragma once

#include <fstream>
#include <iterator>
#include <string>

#include "examples/llama.hpp"
#include "support/catch.hpp"

#ifndef PITH_SOURCE_DIR
#define PITH_SOURCE_DIR "."
#endif

namespace pith_test {

inline std::string read_model_file(std::string const& name) {
  std::ifstream file(PITH_SOURCE_DIR "/examples/model/" + name, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

inline example::llama const& example_model() {
  static example::llama const model = [] {
    std::string const weights = read_model_file("pith-kjv.safetensors");
    auto loaded = example::load_llama(std::as_bytes(std::span(weights)));
    REQUIRE(loaded);
    return std::move(loaded).value();
  }();
  return model;
}

inline std::string const& held_out_text() {
  static std::string const text = read_model_file("held_out.txt");
  REQUIRE(text.size() > 100'000);
  return text;
}

}  // namespace pith_test
