#!/usr/bin/env bash
# setup.sh GROUP...: installs what the named groups need and this machine lacks.
#   build     compiler, CMake, libraries          model     what fetching the small model needs, until the model is there
#   test      what the tests call                 lint      formatters and linters
#   interop   Python with virtual environments    fuzz      clang with libFuzzer
#
# What is missing is found by trying (does a program with this header compile? does pkg-config know the module?), not by asking the
# package manager: a hand-built library counts, and where nothing is missing neither network nor root is needed. On Debian and
# Ubuntu it is installed with apt-get, as root or through a sudo that asks no password; otherwise the command to run is printed and
# the status is 1.
set -euo pipefail
export LC_ALL=C
here=$(cd "$(dirname "$0")" && pwd)

missing=() # Debian packages, in the order found
want() { missing+=("$@"); }
has() { command -v "$1" >/dev/null 2>&1; }
module() { pkg-config --exists "$1" 2>/dev/null; }
compiles() { printf '%s\nint main(void) { return 0; }\n' "$1" | cc "${@:2}" -x c -o /dev/null - >/dev/null 2>&1; }
compiles_cxx() { printf '%s\nint main() { return 0; }\n' "$1" | c++ "${@:2}" -x c++ -o /dev/null - >/dev/null 2>&1; }

check_build() {
  compiles '#include <stdio.h>' || want gcc libc6-dev
  compiles_cxx '#include <string>' || want g++
  has cmake || want cmake
  has ninja || has make || want ninja-build
  has pkg-config || want pkg-config
  has luajit || want luajit
  module luajit || want libluajit-5.1-dev
  module yaml-0.1 || want libyaml-dev
  module jansson || want libjansson-dev
  module libpcre2-8 || want libpcre2-dev
  module libutf8proc || want libutf8proc-dev
  module libedit || want libedit-dev
  module libsodium || want libsodium-dev
  compiles '#include <dnnl.h>' || want libdnnl-dev
  compiles_cxx '#include <gloo/transport/tcp/device.h>' || want libgloo-dev
  # Ninja is quicker than make, but no reason to ask for root by itself.
  [ ${#missing[@]} -eq 0 ] || has ninja || want ninja-build
}
check_model() { # python3 in any case: the recipe's data is made from its sources
  has python3 || want python3
  "$here/fetch_model.sh" --check || python3 -m pip --version >/dev/null 2>&1 || want python3-pip
}
check_test() {
  has git || want git
  python3 -m pip --version >/dev/null 2>&1 || want python3 python3-pip
}
check_lint() {
  has git || want git
  has clang-format || want clang-format
  has luacheck || want lua-check
  has luajit || want luajit
  has shellcheck || want shellcheck
}
check_interop() {
  python3 -c 'import ensurepip, venv' 2>/dev/null || want python3 python3-venv
}
check_fuzz() {
  # A program with libFuzzer, AddressSanitizer and UndefinedBehaviorSanitizer, which are packages of their own.
  echo 'int LLVMFuzzerTestOneInput(const char *d, long n); int LLVMFuzzerTestOneInput(const char *d, long n) { return d != 0 && n > 9; }' |
    "${CLANG:-clang}" -fsanitize=fuzzer,address,undefined -x c -o /dev/null - >/dev/null 2>&1 || want clang libclang-rt-dev
}

find_missing() {
  missing=()
  local group
  for group in "$@"; do
    "check_$group"
  done
  if [ ${#missing[@]} -gt 0 ]; then # each once
    local unique
    unique=$(printf '%s\n' "${missing[@]}" | awk '!seen[$0]++')
    mapfile -t missing <<<"$unique"
  fi
}

# apt-get without output, which is in $log; waits while another apt or dpkg holds a lock.
apt() {
  local tries=0
  until "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 \
    "$@" </dev/null >"$log" 2>&1; do
    grep -qE 'Could not get lock|Unable to (lock|acquire)' "$log" && [ $((tries += 1)) -le 60 ] || return 1
    [ $tries -gt 1 ] || echo "setup: another package installation is running; waiting for it" >&2
    sleep 5
  done
}

for group in "$@"; do
  if ! declare -F "check_$group" >/dev/null; then
    echo "setup: unknown group '$group'; known are build, model, test, lint, interop, fuzz" >&2
    exit 2
  fi
done
find_missing "$@"
[ ${#missing[@]} -gt 0 ] || exit 0
command="apt-get update && apt-get install --no-install-recommends ${missing[*]}"

if ! has apt-get; then
  {
    echo "setup: missing, by their Debian names: ${missing[*]}"
    echo "setup: this system has no apt-get. Install the same from its own packages (a -dev package is the library with its"
    echo "       headers and pkg-config file; libdnnl is oneDNN; lua-check is luacheck), then call make again."
  } >&2
  exit 1
fi
if [ "$(id -u)" -eq 0 ]; then
  as_root=(env)
elif has sudo && sudo -n true 2>/dev/null; then
  as_root=(sudo -n)
else
  echo "setup: some packages are missing. As root, run this, then call make again:" >&2
  echo "$command" >&2
  exit 1
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
echo "setup: installing ${missing[*]}" >&2
# The package lists are fetched where they do not know a package, or where the archive no longer has what they name.
if ! apt-cache show "${missing[@]}" >/dev/null 2>&1; then
  apt update || true
fi
if ! apt install --no-install-recommends "${missing[@]}"; then
  apt update || true
  if ! apt install --no-install-recommends "${missing[@]}"; then
    tail -n 20 "$log" >&2
    echo "setup: the installation failed; the lines above say why. Correct that, or run as root: $command" >&2
    exit 1
  fi
fi
find_missing "$@"
if [ ${#missing[@]} -gt 0 ]; then
  echo "setup: installed, but still not usable: ${missing[*]}. Does another version come first on PATH or PKG_CONFIG_PATH?" >&2
  exit 1
fi
