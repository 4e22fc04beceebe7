// SPDX-License-Identifier: Apache-2.0
#include "files.hpp"

#include <cerrno>
#include <cstring>
#include <vector>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "error.hpp"

namespace tool {

namespace {

[[noreturn]] void fail_with(std::string const& what, std::string const& path, int error) {
  throw failure(bad_io, what + " " + path + ": " + std::strerror(error));
}

// Calls step(pointer, bytes, place) until everything is done, or gives the system's error.
template <class Byte, class Step>
pith::status in_steps(std::int64_t at, std::span<Byte> bytes, Step step) {
  while (!bytes.empty()) {
    ssize_t const count = step(bytes.data(), bytes.size(), at);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return {pith::errc::io_error, count < 0 ? errno : EIO};  // a file that became shorter
    at += count;
    bytes = bytes.subspan(static_cast<std::size_t>(count));
  }
  return {};
}

}  // namespace

std::string folder_of(std::string const& path) {
  std::size_t const slash = path.rfind('/');
  return slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
}
void make_folder(std::string const& path) {
  if (::mkdir(path.c_str(), 0777) != 0 && errno != EEXIST) fail_with("cannot make", path, errno);
}
bool is_folder(std::string const& path) {
  struct stat about {};
  return ::stat(path.c_str(), &about) == 0 && S_ISDIR(about.st_mode);
}

void fail(std::string const& path, pith::status const& s, std::string const& what) {
  std::string text = path + ": ";
  if (!what.empty()) text += what + ": ";
  if (s.code == pith::errc::io_error) throw failure(bad_io, text + std::strerror(static_cast<int>(s.at)));
  if (s.code == pith::errc::unsupported && s.at == 0) throw failure(bad_file, path + ": not a safetensors file");  // a header over 100 MB
  throw failure(code_of(s), text + pith::message(s.code) + ", at byte " + std::to_string(s.at));
}

input_file::input_file(std::string const& path) : path_(path), descriptor_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
  if (descriptor_ < 0) fail_with("cannot open", path, errno);
  struct stat about {};
  if (::fstat(descriptor_, &about) != 0 || !S_ISREG(about.st_mode)) {
    int const error = S_ISDIR(about.st_mode) ? EISDIR : EINVAL;
    ::close(descriptor_);
    fail_with("cannot read", path, error);
  }
  size_ = about.st_size;
}
input_file::~input_file() { ::close(descriptor_); }

pith::status input_file::read(std::int64_t at, std::span<std::byte> to) const {
  return in_steps(at, to, [&](std::byte* data, std::size_t bytes, std::int64_t place) { return ::pread(descriptor_, data, bytes, place); });
}

mapped_file::mapped_file(std::string const& path) {
  int const descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) fail_with("cannot open", path, errno);
  struct stat about {};
  void* memory = nullptr;
  bool const regular = ::fstat(descriptor, &about) == 0 && S_ISREG(about.st_mode);
  auto const size = static_cast<std::size_t>(about.st_size);
  if (regular && size > 0) memory = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, descriptor, 0);
  int const error = regular ? errno : EINVAL;
  ::close(descriptor);
  if (!regular || memory == MAP_FAILED) fail_with("cannot read", path, error);
  bytes_ = {static_cast<std::byte const*>(memory), size};
}
mapped_file::~mapped_file() {
  if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

output_file::output_file(std::string const& path, bool replace) : path_(path) {
  struct stat about {};
  if (!replace && ::lstat(path.c_str(), &about) == 0) throw failure(bad_usage, path + " exists; --force replaces it");
  std::string const folder = folder_of(path);
  temporary_ = folder + "/." + path.substr(path.rfind('/') + 1) + ".XXXXXX";
  descriptor_ = ::mkostemp(temporary_.data(), O_CLOEXEC);
  if (descriptor_ < 0) fail_with("cannot write into", folder, errno);
  mode_t const mask = ::umask(0);
  ::umask(mask);
  ::fchmod(descriptor_, 0666 & ~mask);
}
output_file::~output_file() {
  if (descriptor_ < 0) return;
  ::close(descriptor_);
  ::unlink(temporary_.c_str());
}

pith::status output_file::write(std::int64_t at, std::span<std::byte const> bytes) {
  return in_steps(at, bytes,
                  [&](std::byte const* data, std::size_t count, std::int64_t place) { return ::pwrite(descriptor_, data, count, place); });
}

void output_file::commit(std::int64_t size) {
  if (::ftruncate(descriptor_, size) != 0 || ::fsync(descriptor_) != 0) fail_with("cannot write", path_, errno);
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) fail_with("cannot rename to", path_, errno);
  int const written = descriptor_;
  descriptor_ = -1;  // from here on the file is there
  int const closed = ::close(written), folder = ::open(folder_of(path_).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  int const flushed = folder < 0 ? -1 : ::fsync(folder);
  int const error = errno;
  if (folder >= 0) ::close(folder);
  if (closed != 0 || (flushed != 0 && error != EINVAL)) fail_with("cannot flush", path_, error);
}

std::string read_text(std::string const& path) {
  input_file const file(path);
  std::string text(static_cast<std::size_t>(file.size()), '\0');
  if (auto const ok = file.read(0, std::as_writable_bytes(std::span(text))); !ok) fail(path, ok);
  return text;
}
void write_text(std::string const& path, std::string const& text, bool replace) {
  output_file file(path, replace);
  if (auto const ok = file.write(0, std::as_bytes(std::span(text))); !ok) fail(path, ok);
  file.commit(static_cast<std::int64_t>(text.size()));
}

}  // namespace tool
