#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# readme_test.sh REPOSITORY SCRATCH [PROGRAM]
# The first C++ block of README.md is examples/01_hello.cpp byte for byte. If the block is followed by a block of output before
# the next heading, PROGRAM's output is the same once every number is written #. Exit status 77: nothing to test yet.
repository=$1 scratch=$2 program=${3:-}
readme=$repository/README.md hello=$repository/examples/01_hello.cpp
[ -f "$readme" ] && [ -f "$hello" ] || { echo "README.md or examples/01_hello.cpp does not exist yet"; exit 77; }
mkdir -p "$scratch"

awk '/^```/ { if (inside) exit; if ($0 == "```cpp") { inside = 1; next } } inside' "$readme" >"$scratch/block.cpp"
[ -s "$scratch/block.cpp" ] || { echo "README.md has no cpp block"; exit 1; }
cmp "$scratch/block.cpp" "$hello" || { diff "$scratch/block.cpp" "$hello"; exit 1; }

# Blocks of shell commands are passed over.
awk '/^```/ {
       if (inside) exit
       if (open) { open = 0; next }
       open = 1
       if (seen && ($0 == "```" || $0 == "```text")) inside = 1
       if ($0 == "```cpp") seen = 1
       next
     }
     /^#/ && seen && !open { exit }
     inside' "$readme" >"$scratch/expected.txt"
[ -s "$scratch/expected.txt" ] || { echo "The block is the example; README.md shows no output"; exit 0; }
[ -x "$program" ] || { echo "The example was not built"; exit 77; }
"$program" >"$scratch/output.txt" || { echo "The example failed"; exit 1; }
shape() { sed -E 's/[-+]?[0-9]+([.,][0-9]+)*(e[-+]?[0-9]+)?/#/g; s/[ \t]+/ /g; s/ $//' "$1"; }
shape "$scratch/expected.txt" >"$scratch/expected.shape"
shape "$scratch/output.txt" >"$scratch/output.shape"
diff "$scratch/expected.shape" "$scratch/output.shape"
