#!/usr/bin/env bash
# Make .venv from the lock of this machine's target. Run by `make`; safe to run again. TTA_TARGET=cpu|gpu overrides the choice.
set -euo pipefail
cd "$(dirname "$0")/../.."
VENV=.venv

die() { printf 'setup: %s\n' "$*" >&2; exit 1; }
step() { printf 'setup: [%3ds] %s\n' "$SECONDS" "$*"; }

find_python() {
  local candidate
  for candidate in python3 python3.13 python3.12 python3.11; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  die "Python 3.11, 3.12 or 3.13 is needed; python3 is $(python3 --version 2>/dev/null || echo missing)"
}

check_machine() {
  [ "$(uname -s)" = Linux ] || die "Linux is needed; this is $(uname -s)"
  if [ "$(uname -m)" = x86_64 ] && [ "$1" = cpu ]; then
    grep -qm1 '\bavx2\b' /proc/cpuinfo || die "the CPU build of vLLM needs AVX2, which this processor lacks"
  fi
  local need=8 free
  [ "$1" = gpu ] && need=25
  free=$(df -Pk . | awk 'NR==2 {print int($4 / 1048576)}')
  [ "$free" -ge "$need" ] || die "$need GB of free disk are needed here; there are $free GB"
}

target=${TTA_TARGET:-}
if [ -z "$target" ]; then
  if nvidia-smi -L >/dev/null 2>&1; then target=gpu; else target=cpu; fi
fi
[ -f "deploy/setup/$target.txt" ] || die "TTA_TARGET is $target; it can be cpu or gpu"
python=$(find_python)
check_machine "$target"

step "virtual environment ($target) with $("$python" --version)"
[ -x $VENV/bin/python ] || "$python" -m venv $VENV
bash deploy/setup/torch.sh $VENV "$target"
step "locked packages"
# uv is seven times as fast, and compiles only if told to: each of a server's five processes would do it
# anew where PYTHONDONTWRITEBYTECODE is set. pip knows the index that a user has configured for it alone.
$VENV/bin/uv pip install --python $VENV/bin/python --compile-bytecode --no-deps -r "deploy/setup/$target.txt" ||
  $VENV/bin/python -m pip install --no-deps --progress-bar on -r "deploy/setup/$target.txt" | grep -v '^Requirement already satisfied'
step "tta-serve itself"
$VENV/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
touch $VENV/.ready
step "done"
