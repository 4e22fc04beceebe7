// SPDX-License-Identifier: Apache-2.0
// Files to read, and files that appear whole or not at all.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "pith/core/status.hpp"

namespace tool {

// A container::byte_source: reads at places, from any thread.
class input_file {
 public:
  explicit input_file(std::string const& path);
  input_file(input_file const&) = delete;
  input_file& operator=(input_file const&) = delete;
  ~input_file();

  std::string const& path() const { return path_; }
  std::int64_t size() const { return size_; }
  pith::status read(std::int64_t at, std::span<std::byte> to) const;

 private:
  std::string path_;
  int descriptor_ = -1;
  std::int64_t size_ = 0;
};

// A file as memory; the system reads what is looked at, and may drop it again.
class mapped_file {
 public:
  explicit mapped_file(std::string const& path);
  mapped_file(mapped_file const&) = delete;
  mapped_file& operator=(mapped_file const&) = delete;
  ~mapped_file();

  std::span<std::byte const> bytes() const { return bytes_; }

 private:
  std::span<std::byte const> bytes_;
};

// A container::byte_sink. It is written under another name in the same folder, and renamed by commit when its bytes are on the disk;
// without commit nothing is left. A kill -9 or a crash of the machine may leave the other name, ".NAME.XXXXXX", but never a part of NAME.
class output_file {
 public:
  output_file(std::string const& path, bool replace);
  output_file(output_file const&) = delete;
  output_file& operator=(output_file const&) = delete;
  ~output_file();

  std::string const& path() const { return path_; }
  pith::status write(std::int64_t at, std::span<std::byte const> bytes);
  // The file has `size` bytes: cut, flushed, renamed, and the folder flushed.
  void commit(std::int64_t size);

 private:
  std::string path_, temporary_;
  int descriptor_ = -1;
};

std::string folder_of(std::string const& path);
void make_folder(std::string const& path);
bool is_folder(std::string const& path);
std::string read_text(std::string const& path);
void write_text(std::string const& path, std::string const& text, bool replace);

// A status of a file's as a message: the tensor or what else, the byte, what is wrong.
[[noreturn]] void fail(std::string const& path, pith::status const& s, std::string const& what = {});

}  // namespace tool
