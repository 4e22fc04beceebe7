#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Builds the benchmarks and runs them.
#
#   bench/run.sh                         all of them
#   bench/run.sh --json FILE --filter T  all of them, each with these arguments
#   bench/run.sh attention [argument]    one of them, with arguments
set -euo pipefail
here=$PWD
cd "$(dirname "$0")/.."
. cmake/packages.sh
install_packages

build=$(realpath -m "${PITH_BUILD_DIR:-build}")
cmake --preset release -B "$build" -DPITH_BUILD_BENCH=ON >/dev/null
names=()
case ${1:-} in
  "" | -*) for source in bench/*.cpp bench/*/*.cpp; do [ -e "$source" ] && names+=("$(basename "$source" .cpp)"); done ;;
  *) names=("$1"); shift ;;
esac
if [ ${#names[@]} -eq 0 ]; then
  echo "There are no benchmarks yet."
  exit 0
fi
cmake --build "$build" -j "${PITH_JOBS:-$(nproc)}" --target "${names[@]/#/pith_bench_}"
for name in "${names[@]}"; do
  (cd "$here" && "$build/bench/$name" "$@")  # file names are relative to the caller
done
