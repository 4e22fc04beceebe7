#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# symbols_test.sh FOLDER OBJECT...
# The compiled OBJECTs share weak names that do not carry the instruction set; FOLDER's v2.o, v3.o and avx512.o, made of them, define one
# global symbol each, hold nothing that the linker merges, and run nothing at start.
folder=$1
shift
failed=0
check() {
  [ "$2" "$3" "$4" ] || { echo "$1: $2 $3 $4 does not hold"; failed=1; }
}

# Names that the linker would merge: in all three, weak, instruction set or not.
shared=$(for object in "$@"; do nm --defined-only "$object" | awk '$2 ~ /[WVu]/ { print $3 }'; done | sort | uniq -c | awk -v n=$# '$1 == n { print $2 }')
echo "$(echo "$shared" | grep -c pith) names of Pith are weak in all $# variants before they are kept apart, such as:"
echo "$shared" | grep pith | c++filt | cut -c1-120 | head -3
check "weak names in common" "$(echo "$shared" | grep -c pith)" -gt 0

for variant in v2 v3 avx512; do
  object=$folder/$variant.o
  check "$variant: global symbols" "$(nm -g --defined-only "$object" | awk '{ print $3 }')" = "pith_kernels_$variant"
  check "$variant: weak and unique symbols" "$(nm "$object" | grep -c ' [WVuvw] ')" -eq 0
  check "$variant: section groups" "$(readelf -gW "$object" | grep -c 'group section')" -eq 0
  check "$variant: constructors" "$(objdump -h "$object" | grep -c -E '\.(init_array|ctors)')" -eq 0
  check "$variant: the names are in it" "$(nm "$object" | grep -c -F -w "$(echo "$shared" | grep pith | head -1)")" -eq 1
done
exit $failed
