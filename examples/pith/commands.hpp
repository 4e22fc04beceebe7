// SPDX-License-Identifier: Apache-2.0
// What the program does, without its command line. Everything throws failure.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace tool {

class threads;

struct options {
  std::string codec = "window";
  bool force = false, quiet = false;
};

struct totals {
  std::int64_t tensors = 0, packed = 0, bytes_before = 0, bytes_after = 0;
};

// A run of rows is this much of a tensor, or 32 rows where those are more; rows of which 32 are more than row_block_limit are stored as
// they are.
inline constexpr std::int64_t run_bytes_wanted = 2 << 20, row_block_limit = 64 << 20;

totals compress_file(std::string const& from, std::string const& to, options const& with, threads& run);
totals decompress_file(std::string const& from, std::string const& to, options const& with, threads& run);

// From GGUF.
totals convert_file(std::string const& from, std::string const& to, options const& with, threads& run);

// Every damaged block is a line on stderr, up to twenty. `decode`: the codes are read, too.
totals verify_file(std::string const& path, bool decode, options const& with, threads& run);
totals inspect_file(std::string const& path);

// The files of a model: one, or those that an index names. Given a file, a "*.index.json", or a folder that has one or model.safetensors.
struct model_files {
  std::string folder, index;       // folder with a slash at its end, or nothing; index: empty if there is none
  std::vector<std::string> names;  // in the folder
};
model_files find_files(std::string const& path);
// Every tensor that the index names is in the file that it names.
void check_index(model_files const& files);

int bench(std::string file, double gigabytes, std::string const& folder, options const& with, threads& run);

}  // namespace tool
