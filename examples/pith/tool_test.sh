#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The program as a user meets it: files there and back, damage, exit codes, ends by signal and full disk.
#
#   tool_test.sh PITH SOURCE FOLDER     the program, the repository, a folder to work in that is emptied
set -uo pipefail
pith=$1 model=$2/examples/model/pith-kjv.safetensors golden=$2/tests/golden
rm -rf "$3" && mkdir -p "$3" && cd "$3" || exit 1
failures=0
check() {  # what, command...
  local what=$1
  shift
  "$@" || { echo "FAILED: $what"; failures=$((failures + 1)); }
}
# The exit code, and what it says: code, text on stdout or stderr, arguments.
expect() {
  local code=$1 text=$2 said actual
  shift 2
  said=$("$pith" "$@" 2>&1)
  actual=$?
  [ $actual = "$code" ] && [[ $said == *"$text"* ]] || { echo "FAILED: pith $*: exit $actual, not $code, or without \"$text\": $said"; failures=$((failures + 1)); }
}
u64() {
  local i
  for i in 0 8 16 24 32 40 48 56; do printf "\\x$(printf %02x $(($1 >> i & 255)))"; done
}
make() { u64 ${#2} >"$1" && printf %s "$2" >>"$1" && cat >>"$1"; }  # file, header; tensors from stdin
flip() { printf "\\x$(printf %02x $(($(od -An -tu1 -j "$2" -N 1 "$1") ^ 16)))" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none; }
there_and_back() {  # file, arguments of compress
  rm -f packed back
  "$pith" compress -q "$@" packed && "$pith" verify -q --decode packed && "$pith" decompress -q packed back && cmp "$1" back
}
weights() { tail -c +7001 "$model" | head -c "$1"; }  # bytes of bf16 weights

# The shipped model, every codec; the same bytes on any number of threads.
for codec in window planes huffman rans; do check "the model by $codec" there_and_back "$model" -c $codec; done
check "threads: pack" "$pith" compress -q -j 1 "$model" one
check "threads: pack" "$pith" compress -q -j 5 "$model" five
check "threads: the same bytes" cmp one five
check "threads: unpack" "$pith" decompress -q -f -j 5 five back
check "threads: the model" cmp back "$model"
expect 0 "0.53" compress -f -c int8 "$model" packed
expect 0 "57 tensors" verify --decode packed
expect 0 "" decompress -f packed back
check "rounded: the size stays" test "$(stat -c %s back)" = "$(stat -c %s "$model")"

# Golden files: odd shapes, a scalar, an empty tensor, every float type.
for codec in window planes int4; do
  check "$codec: pack" "$pith" compress -q -f -c $codec "$golden/container_weights.safetensors" packed
  check "$codec: the golden bytes" cmp packed "$golden/container_$codec.safetensors"
done
check "golden: back" "$pith" decompress -q -f "$golden/container_planes.safetensors" back
check "golden: the weights" cmp back "$golden/container_weights.safetensors"
expect 0 "dynamic_float<e5m2,window>, panels of 256" inspect "$golden/container_window.safetensors"
expect 0 "" verify "$golden/container_unknown.safetensors"
expect 4 "tensor w: no codec dynamic_float<bf16,tomorrow>" decompress "$golden/container_unknown.safetensors" unknown

# GGUF: the numbers of the reference's dequantization. Values are in their file's order, tensors of the other by name.
expect 0 "8 packed" convert "$golden/weights.gguf" from_gguf
check "GGUF: unpack" "$pith" decompress -q from_gguf numbers
same_numbers() { cmp <(tail -c $((24238 - $1)) numbers | head -c "$3") <(tail -c +$(($2 + 1)) "$golden/gguf_values.f32" | head -c "$3"); }
check "GGUF: q4_0, q4_1" same_numbers 814 7200 4608
check "GGUF: q4_k" same_numbers 5422 16416 4096
check "GGUF: q5_0, q5_1" same_numbers 9518 11808 4608
check "GGUF: q5_k" same_numbers 14126 20512 4096
check "GGUF: q6_k" same_numbers 18222 0 4096
check "GGUF: q8_0" same_numbers 22318 5280 1920
expect 1 "bad format, at byte 0" convert "$model" whole

# A tensor of many runs, one of one axis, one that nothing makes smaller, an unknown type; no tensors at all; a thousand.
weights 8388608 >w
head -c 4194304 /dev/urandom >noise
cat w noise w <(head -c 7 noise) | make large '{"big":{"dtype":"BF16","shape":[4096,1024],"data_offsets":[0,8388608]},
 "noise":{"dtype":"BF16","shape":[2048,1024],"data_offsets":[8388608,12582912]},
 "flat":{"dtype":"BF16","shape":[4194304],"data_offsets":[12582912,20971520]},
 "new":{"dtype":"F6_E2M3","shape":[9],"data_offsets":[20971520,20971527]}}'
check "large tensors" there_and_back large
"$pith" inspect packed >listed
check "large tensors: packed" grep -q 'big .*dynamic_float' listed
check "one axis: packed" grep -q 'flat .*dynamic_float' listed
check "noise: as it is" grep -q 'noise .*as it is' listed
make none '{}' </dev/null
check "no tensors" there_and_back none
header='{' at=0
for i in $(seq 1000); do header+="\"t$i\":{\"dtype\":\"BF16\",\"shape\":[32,128],\"data_offsets\":[$at,$((at + 8192))]}," at=$((at + 8192)); done
cat w | head -c $at | make many "${header%,}}"
check "a thousand tensors" there_and_back many

# Several files with an index.
mkdir model && cp "$model" model/a.safetensors && cp "$golden/container_weights.safetensors" model/b.safetensors
echo '{"metadata":{"total_size":1},"weight_map":{"lm_head.weight":"a.safetensors","noise":"b.safetensors"}}' >model/model.safetensors.index.json
check "files: pack" "$pith" compress -q model packed_model
check "files: verify" "$pith" verify -q packed_model
check "files: unpack" "$pith" decompress -q packed_model/model.safetensors.index.json back_model
check "files: the same" diff -r model back_model
sed -i s/lm_head/lm_feet/ model/model.safetensors.index.json
expect 1 "tensor lm_feet.weight is not there" compress -f model packed_model
sed -i s,b.safetensors,../b.safetensors, model/model.safetensors.index.json
expect 1 "not in a file of this folder" compress -f model packed_model

# Damage: named by tensor and byte, and nothing is left behind.
cp one damaged && flip damaged 300000
expect 1 "damaged: tensor model.layers.0.mlp.down_proj.weight: damaged: the checksum is another, at byte 288896" verify damaged
expect 1 "damaged: tensor model.layers.0.mlp.down_proj.weight: damaged: the checksum is another, at byte 288896" decompress damaged whole
cp one damaged && flip damaged 100
expect 1 "the checksum is another, at byte 0" verify damaged
head -c 1000000 one >short
expect 1 "short: truncated, at byte" inspect short
expect 1 "truncated" decompress short whole
expect 1 "another format" verify "$model"
expect 1 "noise: not a safetensors file" compress noise whole
expect 2 "is packed already" compress one whole
check "nothing is left of what failed" test ! -e whole

# The command line, files that are not there, or there already.
expect 2 "required" compress "$model"
expect 2 "" compress --codec zip "$model" whole
expect 2 "" frobnicate
expect 0 "exit codes" --help
expect 2 "--force" compress "$model" one
expect 3 "No such file" compress missing whole
expect 3 "No such file" compress "$model" missing/whole

# A full disk (here: a limit of the file's size), a signal.
mkdir empty
(ulimit -f 1000 && "$pith" compress -q "$model" empty/out 2>said)
check "full: exit code 3" test $? = 3
check "full: it says so" grep -q "File too large" said
(ulimit -f 1000 && "$pith" decompress -q one empty/out 2>said)
check "full: exit code 3 of decompress" test $? = 3
for signal in 2 15; do
  "$pith" compress -q -j 1 -c rans large empty/out 2>said &
  while kill -0 $! 2>/dev/null && [ -z "$(ls -A empty)" ]; do sleep 0.005; done
  kill -$signal $!
  wait $!
  check "signal $signal: exit code" test $? = $((128 + signal))
done
check "nothing is left of what was ended" test -z "$(ls -A empty)"

# There and back in one call.
expect 0 "back byte for byte" bench "$model" --folder .
check "bench: nothing is left" test -z "$(ls | grep pith-bench)"

[ $failures = 0 ] && echo "all right"
[ $failures = 0 ]
