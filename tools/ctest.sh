#!/usr/bin/env bash
# ctest.sh FOLDER [CTEST-OPTION...]: runs the tests of a build folder. Passes ctest's status on, fails where there is no test, and
# prints ctest's closing line ("100% tests passed, ...") last.
set -euo pipefail
folder=$1
shift
# Two test programs at a time, each with its own OpenMP threads: waiting threads must sleep, not spin.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}
# shellcheck disable=SC2016  # $ is sed's last line
ctest --test-dir "$folder" --output-on-failure --no-tests=error --no-label-summary --parallel "${JOBS:-$(nproc)}" "$@" 2>&1 |
  sed -u -e '/% tests passed/{h;d;}' -e '$G'
