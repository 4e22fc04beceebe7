// SPDX-License-Identifier: Apache-2.0
// How the program fails: a message for a person and the exit code. The program throws; the library does not.
#pragma once

#include <stdexcept>
#include <string>

#include "pith/core/status.hpp"

namespace tool {

// 128 + signal is the exit code of a run that SIGINT or SIGTERM ended.
enum exit_code { done = 0, bad_file = 1, bad_usage = 2, bad_io = 3, not_supported = 4 };

class failure : public std::runtime_error {
 public:
  failure(int code, std::string const& text) : std::runtime_error(text), code_(code) {}
  int code() const { return code_; }

 private:
  int code_;
};

inline int code_of(pith::status const& s) {
  if (s.code == pith::errc::io_error || s.code == pith::errc::out_of_memory) return bad_io;
  return s.code == pith::errc::unsupported ? not_supported : bad_file;
}

}  // namespace tool
