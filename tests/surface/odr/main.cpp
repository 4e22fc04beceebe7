// SPDX-License-Identifier: Apache-2.0
#include <cstdio>
#include <cstring>

char const* name_avx2();
char const* name_avx512();
int lanes_avx2();
int lanes_avx512();

int main() {
  std::printf("%s %d, %s %d\n", name_avx2(), lanes_avx2(), name_avx512(), lanes_avx512());
  bool const right = std::strcmp(name_avx2(), "isa_avx2") == 0 && lanes_avx2() == 8 && std::strcmp(name_avx512(), "isa_avx512") == 0 &&
                     lanes_avx512() == 16;
  return right ? 0 : 1;
}
