# SPDX-License-Identifier: Apache-2.0
# Sourced by the run.sh scripts: installs what is missing on Debian or Ubuntu, as root. Elsewhere it says what to install.

required="cmake ninja-build g++ pkg-config catch2 libxsimd-dev libeigen3-dev nlohmann-json3-dev libcli11-dev libxxhash-dev libbenchmark-dev librapidcheck-dev"
optional="clang-16 ccache"

lacking() {
  for package in "$@"; do
    dpkg-query -W -f '${Status}\n' "$package" 2>/dev/null | grep -q 'install ok installed' || printf '%s ' "$package"
  done
}

# A build that already works is left alone: nothing is installed if every required package is there.
install_packages() {
  if ! command -v dpkg-query >/dev/null 2>&1; then
    echo "This is not Debian: install the equivalents of: $required"
    return 0
  fi
  missing=$(lacking $required)
  [ -n "$missing" ] || return 0
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "Missing packages; install them first: $missing" >&2
    return 1
  fi
  echo "Installing: $missing"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq || return 1
  apt-get install -y -qq --no-install-recommends $missing >/dev/null || return 1
  # One at a time, and missing them is no failure: the tests that need them are reported as not run.
  for package in $(lacking $optional); do
    apt-get install -y -qq --no-install-recommends "$package" >/dev/null 2>&1 || echo "No package $package here"
  done
}
