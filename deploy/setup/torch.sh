#!/usr/bin/env bash
# Put uv, and on a CPU torch, into a virtual environment: torch.sh VENV cpu|gpu. The image is made with it, too.
set -euo pipefail
venv=$1 target=$2
lock=$(dirname "$0")/$target.txt

find_pin() { grep "^$1==" "$lock" | awk '{print $1}'; }

"$venv/bin/python" -m pip install --quiet "$(find_pin uv)"
[ "$target" = cpu ] || exit 0
# The CPU build: from the user's own index or wheel folder where it has it, else from PyTorch's, which uv knows.
pinned=$(find_pin torch)
"$venv/bin/python" -m pip install --no-deps "$pinned" 2>/dev/null ||
  "$venv/bin/uv" pip install --python "$venv/bin/python" --no-deps --torch-backend cpu "${pinned%+cpu}" ||
  { echo "setup: no CPU build of torch: neither the configured package index nor PyTorch's own answers with $pinned" >&2; exit 1; }
