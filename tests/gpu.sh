#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Builds and runs what needs a GPU, with CMake and nvcc alone: the device cases, some of them under compute-sanitizer, the GPU benchmarks.
# Every step has a time limit and the script goes on behind one that fails. Ends in one line, `N passed, N failed`.
#
#   tests/gpu.sh [TEXT...]     only the device cases whose names hold one of the texts, and no benchmarks
#   PITH_BUILD_DIR=DIR         build in DIR-gpu (default: build-gpu, in the repository)
#   PITH_JOBS=N                compile with N jobs (default: one a processor)
#   PITH_LIMIT=SECONDS         at most so long a step (default: 300)
#
# Exit status 0: all passed. 1: some failed. 77: there is no GPU from sm_80 on, or no nvcc or CMake to build with; nothing was run.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
build=$(realpath -m "${PITH_BUILD_DIR:-build}-gpu")
jobs=${PITH_JOBS:-$(nproc)}
limit=${PITH_LIMIT:-300}
passed=0
failed=0

if ! gpus=$(nvidia-smi --query-gpu=name,compute_cap,driver_version --format=csv,noheader 2>/dev/null) || [ -z "$gpus" ]; then
  echo "NOT RUN: everything (this machine has no GPU: nvidia-smi finds none)"
  exit 77
fi
nvcc=${CUDACXX:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}
if ! [ -x "$nvcc" ]; then
  echo "NOT RUN: everything (nvcc was not found; CUDACXX names it)"
  exit 77
fi
if ! command -v cmake >/dev/null 2>&1; then
  echo "NOT RUN: everything (cmake was not found)"
  exit 77
fi
echo "$gpus"
"$nvcc" --version | tail -1

# One step: its name, then the command. Shows the output as it comes and keeps it.
step() {
  local name=$1 started=$SECONDS
  shift
  echo
  echo "=== $name"
  timeout -k 10 "$limit" "$@" 2>&1 | tee "$build/step.log"
  local code=${PIPESTATUS[0]}
  [ "$code" -ne 124 ] && [ "$code" -ne 137 ] || echo "TIMEOUT: $name, after $limit s"
  echo "=== $name took $((SECONDS - started)) s"
  return "$code"
}
count() {
  if [ "$1" -eq 0 ]; then
    passed=$((passed + 1))
  else
    failed=$((failed + 1))
    echo "FAILED   $2"
  fi
}
finish() {
  echo
  echo "$passed passed, $failed failed"
  [ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
  exit
}

# The first GPU's own architecture, with its own instructions from sm_90 on.
architecture=$(head -1 <<<"$gpus" | sed 's/.*, *\([0-9]*\)\.\([0-9]*\), .*/\1\2/')
if [ "$architecture" -lt 80 ]; then
  echo "NOT RUN: everything (the first GPU is sm_$architecture; device code needs sm_80)"
  exit 77
fi
[ "$architecture" -lt 90 ] || architecture=${architecture}a
mkdir -p "$build"
step "configure for sm_$architecture" cmake -S tests/cuda/device -B "$build" -DCMAKE_CUDA_COMPILER="$nvcc" \
  -DCMAKE_CUDA_ARCHITECTURES="$architecture" -DCMAKE_BUILD_TYPE=Release
code=$?
count "$code" "configure"
[ "$code" -eq 0 ] || finish
step "build" cmake --build "$build" -j "$jobs" --target pith_device
code=$?
count "$code" "build of the device cases"
[ "$code" -eq 0 ] || finish

# The program counts for itself; where it dies without its last line, that is one failure.
step "device cases" "$build/pith_device" "$@"
code=$?
if last=$(grep -E '^[0-9]+ passed, [0-9]+ failed$' "$build/step.log" | tail -1) && [ -n "$last" ] && [ "$code" -le 1 ]; then
  read -r p _ f _ <<<"$last"
  passed=$((passed + p))
  failed=$((failed + f))
else
  count 1 "device cases (exit status $code)"
fi

# A few cases, and those that are named `sanitize: ...`, under the sanitizer: accesses (memcheck) and shared memory without a barrier
# (racecheck). Some machines do not let it in.
sanitizer=$(command -v compute-sanitizer ||
  ls "$(dirname "$nvcc")/compute-sanitizer" /usr/local/cuda/compute-sanitizer/compute-sanitizer 2>/dev/null | head -1)
if [ -z "$sanitizer" ]; then
  echo
  echo "NOT RUN: compute-sanitizer (not found)"
else
  for tool in memcheck racecheck; do
    step "$tool" "$sanitizer" --tool "$tool" --error-exitcode 86 "$build/pith_device" \
      "thread: collectives" "launch: the first" "launch: a kernel may" "sanitize:"
    code=$?
    if [ "$code" -eq 86 ] || grep -qE 'ERROR SUMMARY: [1-9]|RACECHECK SUMMARY: [1-9]' "$build/step.log"; then
      count 1 "$tool"
    elif [ "$code" -eq 0 ] && grep -qE 'ERROR SUMMARY: 0|RACECHECK SUMMARY: 0' "$build/step.log"; then
      count 0 "$tool"
    elif grep -qE '^FAILED' "$build/step.log" || [ "$code" -eq 124 ]; then
      count 1 "$tool"
    else
      echo "NOT RUN: $tool (it does not work here: exit status $code)"
    fi
  done
fi

if [ $# -eq 0 ]; then
  if ls bench/cuda/*.cu >/dev/null 2>&1; then
    for source in bench/cuda/*.cu; do
      name=bench_$(basename "$source" .cu)
      step "build of $name" cmake --build "$build" -j "$jobs" --target "$name" || { count 1 "build of $name"; continue; }
      step "$name" "$build/$name"
      count $? "$name"
      cp "$build/step.log" "$build/$name.log"
    done
    if python3 -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
      step "torch_attention" python3 bench/cuda/torch_attention.py
      count $? "torch_attention"
      cp "$build/step.log" "$build/torch_attention.log"
    else
      echo
      echo "NOT RUN: PyTorch's attention beside ours (no PyTorch that sees the GPU)"
    fi
  else
    echo
    echo "NOT RUN: GPU benchmarks (bench/cuda has none)"
  fi
fi
finish
