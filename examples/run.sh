#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Builds the examples and runs them.
#
#   examples/run.sh                       all of them but 08_what_stays, which takes a quarter of an hour
#   examples/run.sh 01_hello [argument]   one of them, with arguments
#   examples/run.sh [--option ...]        all of them, each with these arguments
set -euo pipefail
here=$PWD
cd "$(dirname "$0")/.."
. cmake/packages.sh
install_packages

build=$(realpath -m "${PITH_BUILD_DIR:-build}")
cmake --preset release -B "$build" >/dev/null
targets=$(cmake --build "$build" --target help)  # 05_dispatch is there on x86 alone
names=()
case ${1:-} in
  "" | -*)
    for source in examples/[0-9]*.cpp; do
      name=$(basename "$source" .cpp)
      [ "$name" != 08_what_stays ] || continue
      case $targets in *"pith_example_$name:"*) names+=("$name") ;; *) echo "$name is not built on this machine" ;; esac
    done
    ;;
  *) names=("$1"); shift ;;
esac
cmake --build "$build" -j "${PITH_JOBS:-$(nproc)}" --target "${names[@]/#/pith_example_}"
for name in "${names[@]}"; do
  echo
  echo "=== $name"
  (cd "$here" && "$build/examples/$name" "$@")  # file names are relative to the caller
done
