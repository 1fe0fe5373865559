#!/bin/sh
# setup.sh [--check] [5 | 6]: makes the virtual environment with PyTorch, transformers, PEFT and sentence-transformers that the
# interoperability tests, the reference benchmark and make_golden.py run in, and prints its folder on standard output:
#     venv=$(tests/interop/setup.sh) && "$venv/bin/python" ...
# The number is sentence-transformers' generation: 5 (the default, of requirements.txt) comes with transformers 4, and 6
# (requirements-6.txt) with transformers 5. With --check it makes nothing: status 1 if there is none yet. Progress is
# written to standard error. The folder is $LORARUN_VENV, or else lorarun/venv-<hash of requirements.txt> in the user's cache
# folder, and generation 6 lies inside it, because both share torch and all other packages with equal pins. New pins give new
# environments. A finished environment has a mark inside and is returned at once.
#
# PyPI's Linux wheels of torch are CUDA builds. Everything is installed with --no-deps from the full list of pins, and the
# CUDA libraries that torch needs at import come from the system (its library cache, then $CUDA_HOME or /usr/local/cuda,
# linked beside torch's own libraries); only where there is no CUDA 13 toolkit are torch's own CUDA wheels installed (2 GB).
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
requirements=$here/requirements.txt
python=${PYTHON:-python3}
# The packages in torch's metadata whose libraries are also in a CUDA toolkit.
cuda_wheels='cuda-toolkit[cublas,cudart,cufft,cupti,curand,cusolver,cusparse,nvjitlink,nvrtc,nvtx]==13.0.2
  nvidia-cudnn-cu13==9.19.0.56 nvidia-nccl-cu13==2.28.9'

say() { echo "setup.sh: $*" >&2; }
die() { say "$*"; exit 1; }

check=0 generation=5
for word in "$@"; do
  case $word in
    --check) check=1 ;;
    5 | 6) generation=$word ;;
    *) die "unknown argument '$word'; usage: setup.sh [--check] [5 | 6]" ;;
  esac
done

command -v "$python" >/dev/null 2>&1 ||
  die "$python is missing. On Debian: apt-get install python3 python3-venv (or set PYTHON)"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  die "$("$python" --version) is too old: the pins need 3.11 or later. Set PYTHON to a newer one"
"$python" -c 'import venv, ensurepip' 2>/dev/null ||
  die "$python cannot make virtual environments. On Debian: apt-get install python3-venv"

hash=$(sha256sum "$requirements" | cut -c1-12)
venv=${LORARUN_VENV:-${XDG_CACHE_HOME:-$HOME/.cache}/lorarun/venv-$hash}
mkdir -p "$(dirname -- "$venv")"

# Two calls at once wait for each other here.
if command -v flock >/dev/null 2>&1; then
  exec 9>"$venv.lock"
  flock 9
fi

site() { "$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }
install() { # FOLDER PIP-ARGUMENT...
  folder=$1
  shift
  "$venv/bin/python" -m pip --python "$folder/bin/python" install --quiet --disable-pip-version-check "$@" >&2 ||
    die "pip failed; the environment in $folder is incomplete. Run this again once the cause above is gone"
}
finish() { # FOLDER MARK
  "$1/bin/python" -c 'import torch, peft, accelerate, sentence_transformers, sklearn, scipy' >&2 ||
    die "the packages are installed in $1 but cannot be imported: see the error above"
  : >"$2"
  say "done"
}

# The libraries that torch needs but does not find.
missing() {
  ldd "$torch/libtorch_cuda.so" "$torch/libtorch_python.so" |
    sed -n 's/^[[:space:]]*\([^ ]*\) => not found.*/\1/p' | sort -u
}

if [ ! -e "$venv/lorarun-$hash.complete" ]; then
  [ "$check" = 0 ] || exit 1
  say "making $venv (downloads about 1 GB, takes 2.1 GB of disk)"
  "$python" -m venv "$venv" >&2
  install "$venv" --no-deps -r "$requirements"
  torch=$(site "$venv")/torch/lib

  # A linked library may need further ones: repeat until no link helps.
  linked=1
  while [ "$linked" -gt 0 ]; do
    linked=0
    for name in $(missing); do
      for folder in "${CUDA_HOME:-/usr/local/cuda}/lib64" "${CUDA_HOME:-/usr/local/cuda}/lib"; do
        if [ -e "$folder/$name" ] && [ ! -e "$torch/$name" ]; then
          ln -s "$folder/$name" "$torch/$name"
          linked=$((linked + 1))
        fi
      done
    done
  done
  if [ -n "$(missing)" ]; then
    say "no CUDA 13 toolkit here; installing torch's CUDA libraries (2 GB), which it needs at import even on a CPU"
    # shellcheck disable=SC2086 # a list of words
    install "$venv" $cuda_wheels
  fi
  finish "$venv" "$venv/lorarun-$hash.complete"
fi
[ "$generation" = 6 ] || {
  echo "$venv"
  exit 0
}

hash=$(sha256sum "$here/requirements-6.txt" | cut -c1-12)
newer=$venv/generation-6-$hash
if [ ! -e "$newer/lorarun.complete" ]; then
  [ "$check" = 0 ] || exit 1
  say "making $newer (downloads about 25 MB, takes 200 MB of disk)"
  "$python" -m venv --clear --without-pip "$newer" >&2
  # Install first, then add the path: pip must not take the first environment's packages for this one's.
  install "$newer" --no-deps -r "$here/requirements-6.txt"
  site "$venv" >"$(site "$newer")/first.pth"
  finish "$newer" "$newer/lorarun.complete"
fi
echo "$newer"
