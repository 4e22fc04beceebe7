#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# install_test.sh REPOSITORY BUILD SCRATCH
# Installs the library into SCRATCH/prefix and uses it in each of the ways that a user would.
set -eu
repository=$1 build=$2 scratch=$3
consumer=$repository/tests/install/consumer
rm -rf "$scratch"
mkdir -p "$scratch"

step() { echo "--- $1"; }

step "install"
"$CMAKE" --install "$build" --prefix "$scratch/prefix" >"$scratch/install.log"
mv "$scratch/prefix" "$scratch/moved"  # a package that knows where it was installed would break here
prefix=$scratch/moved
if grep -rl -e "$repository" -e "$build" "$prefix"; then echo "The files above name folders of the build"; exit 1; fi

build_and_run() {  # folder, options for cmake
  folder=$1
  shift
  "$CMAKE" -S "$consumer" -B "$folder" -DCMAKE_BUILD_TYPE=Release "$@" >"$folder.log" || { cat "$folder.log"; exit 1; }
  "$CMAKE" --build "$folder" >>"$folder.log" || { cat "$folder.log"; exit 1; }
  "$folder/consumer"
}

step "find_package"
build_and_run "$scratch/package" -DCMAKE_PREFIX_PATH="$prefix"

step "find_package of a version that is not there"
if "$CMAKE" -S "$consumer" -B "$scratch/newer" -DCMAKE_PREFIX_PATH="$prefix" -DWANTED=99.0 >"$scratch/newer.log" 2>&1; then
  echo "Version 99.0 was found"
  exit 1
fi

step "add_subdirectory"
build_and_run "$scratch/subdirectory" -DPITH_FOLDER="$repository"

step "the compiler alone"
"$CXX" -std=c++20 -O2 -I"$repository/include" "$consumer/main.cpp" -o "$scratch/plain"
"$scratch/plain"

if command -v pkg-config >/dev/null 2>&1; then
  step "pkg-config"
  flags=$(PKG_CONFIG_PATH=$prefix/share/pkgconfig pkg-config --cflags pith)
  "$CXX" -std=c++20 -O2 $flags -DPACKAGE_VERSION="\"$(PKG_CONFIG_PATH=$prefix/share/pkgconfig pkg-config --modversion pith)\"" \
    "$consumer/main.cpp" -o "$scratch/pkg_config"
  "$scratch/pkg_config"
fi
