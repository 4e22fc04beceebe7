#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Cross-compiles the tests for other processors and runs them under qemu: aarch64 (NEON, in three stages of its dot products) and s390x
# (big-endian, scalar). The golden files and tests/golden/checksums.txt are among the tests: the same bytes on all of them.
#
#   tests/architectures.sh              all of them
#   tests/architectures.sh neon ...     some of: neon, neon-dotprod, neon-i8mm, big-endian (presets in CMakePresets.json)
#   PITH_BUILD_DIR=DIR                  build in DIR-<preset> (default: build-<preset>, in the repository)
#   PITH_JOBS=N                         compile and test with N jobs (default: one a processor)
#
# neon-i8mm builds only the rooms that reach its one different function, dot4.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
. cmake/packages.sh
required="cmake ninja-build g++ catch2 libxsimd-dev libeigen3-dev g++-aarch64-linux-gnu g++-s390x-linux-gnu qemu-user-static"
optional="ccache"
install_packages || exit 1

build=$(realpath -m "${PITH_BUILD_DIR:-build}")
jobs=${PITH_JOBS:-$(nproc)}
[ $# -gt 0 ] || set -- neon neon-dotprod neon-i8mm big-endian
summary=()
failed=0
mkdir -p "$(dirname "$build")"
for preset in "$@"; do
  directory=$build-$preset started=$SECONDS result=passed
  echo
  echo "=== $preset"
  rm -f "$directory/Testing/Temporary/LastTest.log"
  cmake --preset "$preset" -B "$directory" >"$directory.log" 2>&1 || { cat "$directory.log"; result="FAILED: configure"; }
  if [ "$result" = passed ]; then
    cmake --build "$directory" -j "$jobs" -- -k 0 || result="FAILED: build"
    built=$((SECONDS - started))
    ctest --test-dir "$directory" --no-tests=error --output-on-failure --timeout 3600 -j "$jobs" || result="FAILED: tests"
    log=$directory/Testing/Temporary/LastTest.log
    result+=", $(grep -o 'All tests passed (.*' "$log" | grep -o '[0-9]* assertion' | awk '{ n += $1 } END { print n + 0 }') assertions in"
    result+=" $(sed -n 's/^[0-9]*\/[0-9]* Test: //p' "$log" | sort | tr '\n' ' ')(build $built s, run $((SECONDS - started - built)) s)"
  fi
  case $result in FAILED*) failed=1 ;; esac
  summary+=("$preset: $result")
done

echo
echo "=== $(date +%F), $(aarch64-linux-gnu-g++ --version | head -1), $(qemu-aarch64-static --version | head -1)"
printf '%s\n' "${summary[@]}"
exit $failed
