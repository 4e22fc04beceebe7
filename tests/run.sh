#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Installs what is missing, builds and runs every test, then the variants, each with the rooms that it can change (CMakePresets.json). Says at
# the end what this machine could not run.
#
#   tests/run.sh            everything
#   tests/run.sh --quick    the release build only
#   tests/run.sh --all      sanitizers for more rooms, every header and every compile failure with both compilers (the ordinary run: headers
#                           alone with clang, wrong programs with g++), the largest example, a clang build, and the other architectures under qemu
#   tests/run.sh --architectures   those alone: tests/architectures.sh
#   PITH_BUILD_DIR=DIR      build in DIR and DIR-<variant> (default: build, in the repository)
#   PITH_JOBS=N             compile and test with N jobs (default: one a processor)
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
[ "${1:-}" != --architectures ] || exec tests/architectures.sh
. cmake/packages.sh
install_packages || exit 1

build=$(realpath -m "${PITH_BUILD_DIR:-build}")
jobs=${PITH_JOBS:-$(nproc)}
all=OFF
[ "${1:-}" != --all ] || all=ON
failed=()
not_run=()

# Configures, builds and tests one preset. Keeps going after a failure, so that one run shows everything that is broken.
run_preset() {
  local preset=$1 directory=$2 started=$SECONDS
  shift 2
  echo
  echo "=== $preset"
  if cmake --preset "$preset" -B "$directory" -DPITH_TEST_ALL=$all >"$directory.log" 2>&1; then
    cmake --build "$directory" -j "$jobs" -- -k 0 || failed+=("$preset: build")
    ctest --test-dir "$directory" --output-on-failure -j "$jobs" "$@" 2>&1 | tee "$directory.log" || failed+=("$preset: tests")
    while IFS= read -r line; do not_run+=("$preset: $line"); done < <(sed -n 's/^[ \t]*[0-9]* - \(.*\) (Skipped)$/\1 (skipped itself)/p' "$directory.log")
  else
    cat "$directory.log"
    failed+=("$preset: configure")
  fi
  echo "=== $preset took $((SECONDS - started)) s"
}

mkdir -p "$(dirname "$build")"
run_preset release "$build" --no-tests=error
while IFS= read -r line; do not_run+=("$line"); done < <(cat "$build/not_run.txt" 2>/dev/null)

if [ "${1:-}" = --quick ]; then
  not_run+=("scalar, avx2, noexcept, asan-ubsan and clang builds (--quick)")
else
  run_preset scalar "$build-scalar"
  if grep -qw avx2 /proc/cpuinfo 2>/dev/null; then
    run_preset avx2 "$build-avx2"
  else
    not_run+=("avx2 build (this processor has no AVX2)")
  fi
  run_preset noexcept "$build-noexcept"
  run_preset asan-ubsan "$build-asan-ubsan"
  if [ "${1:-}" = --all ]; then
    run_preset asan-ubsan-more "$build-asan-ubsan-more"
    if command -v clang++-16 >/dev/null 2>&1; then
      run_preset clang "$build-clang"
    else
      not_run+=("clang build (clang++-16 is not installed)")
    fi
  else
    not_run+=("sanitizers for kernels alone, packed weights, files, policies, emulated kernels and the three largest tests of caches (only with --all)" "clang build of the tests, compile failures under clang, headers alone under g++, example 08_what_stays (only with --all)")
  fi
fi

if [ "${1:-}" = --all ]; then
  tests/architectures.sh || failed+=("architectures under qemu")
else
  not_run+=("aarch64 and s390x builds under qemu (tests/run.sh --architectures)")
fi

for flag in avx512f avx512_vnni avx512_bf16; do
  grep -qw "$flag" /proc/cpuinfo 2>/dev/null || not_run+=("kernels that use $flag (this processor does not have it)")
done
command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1 || not_run+=("device kernels and their benchmarks (no GPU here; tests/gpu.sh runs them)")

echo
echo "=== summary, after $SECONDS s"
for line in "${not_run[@]+"${not_run[@]}"}"; do echo "NOT RUN: $line"; done
for line in "${failed[@]+"${failed[@]}"}"; do echo "FAILED: $line"; done
[ ${#failed[@]} -eq 0 ] && echo "All tests that ran passed."
[ ${#failed[@]} -eq 0 ]
