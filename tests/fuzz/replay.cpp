// SPDX-License-Identifier: Apache-2.0
// Runs a target without libFuzzer.
//
//   replay CORPUS [N]      the seeds, every file of the folder CORPUS if it exists, then N mutations of them (default 10000), the same ones
//   each time replay --seeds FOLDER  writes the seeds there, for libFuzzer to begin with replay FILE            that input alone
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "fuzz/target.hpp"
#include "support/digest.hpp"

namespace {

using pith_test::bytes;

bytes read(std::filesystem::path const& path) {
  std::ifstream file(path, std::ios::binary);
  std::string const text{std::istreambuf_iterator<char>(file), {}};
  auto const* const first = reinterpret_cast<std::byte const*>(text.data());
  return {first, first + text.size()};
}

bytes mutated(bytes of, bytes const& other, pith_test::random_bits& random) {
  constexpr std::uint32_t unusual[] = {0, 1, 0x7f, 0x80, 0xff, 0x100, 0x7fff, 0xffff, 0x7fffffff, 0x80000000, 0xffffffff};
  auto const below = [&](std::size_t n) { return n == 0 ? 0 : static_cast<std::size_t>(random() % n); };
  for (std::size_t left = 1 + below(4); left > 0; --left) {
    if (of.empty()) of.push_back(std::byte{0});
    std::size_t const at = below(2) == 0 ? below(of.size()) : below(of.size() < 64 ? of.size() : 64);  // headers lie in front
    switch (below(7)) {
      case 0: of[at] ^= static_cast<std::byte>(1u << below(8)); break;
      case 1: of[at] = static_cast<std::byte>(random()); break;
      case 2: of.resize(at); break;
      case 3: of.insert(of.begin() + static_cast<std::ptrdiff_t>(at), 1 + below(16), static_cast<std::byte>(random())); break;
      case 4:
        of.erase(of.begin() + static_cast<std::ptrdiff_t>(at), of.begin() + static_cast<std::ptrdiff_t>(at + below(of.size() - at)));
        break;
      case 5:
        for (std::uint32_t word = unusual[below(std::size(unusual))], i = 0; i < 4 && at + i < of.size(); ++i, word >>= 8)
          of[at + i] = static_cast<std::byte>(word);
        break;
      default:
        for (std::size_t i = 0, from = below(other.size()), count = below(64); i < count && at + i < of.size() && from + i < other.size();
             ++i)
          of[at + i] = other[from + i];
    }
  }
  return of;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) return std::fprintf(stderr, "usage: replay CORPUS [N] | --seeds FOLDER | FILE\n"), 2;
  std::vector<bytes> inputs = pith_test::fuzz_seeds();
  if (std::string_view(argv[1]) == "--seeds") {
    if (argc != 3) return std::fprintf(stderr, "usage: replay --seeds FOLDER\n"), 2;
    std::filesystem::create_directories(argv[2]);
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      std::ofstream file(std::filesystem::path(argv[2]) / ("seed" + std::to_string(i)), std::ios::binary);
      file.write(reinterpret_cast<char const*>(inputs[i].data()), static_cast<std::streamsize>(inputs[i].size()));
    }
    return 0;
  }
  if (std::filesystem::is_regular_file(argv[1])) return pith_test::fuzz_one(read(argv[1])), 0;

  std::size_t const seeds = inputs.size();
  if (std::filesystem::is_directory(argv[1]))
    for (auto const& entry : std::filesystem::directory_iterator(argv[1])) inputs.push_back(read(entry.path()));
  if (inputs.empty()) return std::fprintf(stderr, "no inputs\n"), 1;
  for (bytes const& input : inputs) pith_test::fuzz_one(input);
  long const mutations = argc > 2 ? std::atol(argv[2]) : 10000;
  pith_test::random_bits random(1);
  for (long i = 0; i < mutations; ++i)
    pith_test::fuzz_one(mutated(inputs[random() % inputs.size()], inputs[random() % inputs.size()], random));
  std::printf("%zu seeds, %zu inputs of the corpus, %ld mutations\n", seeds, inputs.size() - seeds, mutations);
}
