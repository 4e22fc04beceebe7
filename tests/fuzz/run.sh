#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Fuzzes every target with libFuzzer, one after the other; new inputs that reach more stay in the build folder, a crash beside them.
#
#   tests/fuzz/run.sh [SECONDS] [TARGET...]     SECONDS for each target (default 60)
#   PITH_BUILD_DIR=DIR                          build in DIR-fuzz (default: build-fuzz, in the repository)
#
# Exit status 0: nothing found. 1: a target failed. 77: clang's libFuzzer is not here; nothing was run.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
build=$(realpath -m "${PITH_BUILD_DIR:-build}-fuzz")
seconds=${1:-60}
[ $# -eq 0 ] || shift

probe=$(mktemp)
if ! echo 'extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }' |
  clang++-16 -fsanitize=fuzzer -x c++ - -o "$probe" 2>/dev/null; then
  echo "NOT RUN: libFuzzer (needs clang++-16 and libclang-rt-16-dev)"
  exit 77
fi
rm -f "$probe"

cmake --preset fuzz -B "$build" >/dev/null || exit 1
[ $# -gt 0 ] || set -- $(cd tests/fuzz && ls *.cpp | grep -vE '^(replay|libfuzzer)\.cpp$' | sed 's/\.cpp//')
failed=0
for name in "$@"; do
  echo "=== $name"
  cmake --build "$build" --target "pith_replay_$name" "pith_fuzz_$name" || { failed=1; continue; }
  mkdir -p "$build/corpus/$name"
  "$build/tests/fuzz/pith_replay_$name" --seeds "$build/corpus/$name" || failed=1
  known=()
  [ ! -d "tests/fuzz/corpus/$name" ] || known=("tests/fuzz/corpus/$name")
  "$build/tests/fuzz/pith_fuzz_$name" -max_total_time="$seconds" -max_len=65536 -timeout=20 -rss_limit_mb=4096 -print_final_stats=1 -verbosity=0 \
    -artifact_prefix="$build/$name-" "$build/corpus/$name" "${known[@]+"${known[@]}"}" || failed=1
done
exit $failed
