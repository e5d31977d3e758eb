#!/usr/bin/env bash
# Put the programs that tests run into .venv/tools, from Debian's packages, without installing them: no root is
# needed, and no service starts. Where there is no apt, tests of what is missing are skipped, and say so.
set -euo pipefail
cd "$(dirname "$0")/../.."
TOOLS=.venv/tools
PACKAGES="prometheus"

for package in $PACKAGES; do
  [ -e "$TOOLS/.$package" ] && continue
  command -v apt-get dpkg >/dev/null || { echo "test tools: no apt here; tests of $package are skipped"; continue; }
  mkdir -p "$TOOLS"
  download=$(mktemp -d)
  (cd "$download" && { apt-get download -q "$package" || { apt-get update -q && apt-get download -q "$package"; }; }) >&2 ||
    { echo "test tools: apt has no $package; its tests are skipped"; continue; }
  dpkg -x "$download"/*.deb "$TOOLS"
  rm -r "$download"
  touch "$TOOLS/.$package"
done
