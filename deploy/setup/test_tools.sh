#!/usr/bin/env bash
# Put the programs that tests run into .venv/tools, from Debian's packages, without installing them: no root is
# needed, and no service starts. Where there is no apt, tests of what is missing are skipped, and say so.
set -euo pipefail
cd "$(dirname "$0")/../.."
TOOLS=.venv/tools
PACKAGES="prometheus chromium-headless-shell"

# The packages to unpack: of a browser also what it needs and this machine lacks; Prometheus is one static program.
list() {
  if [ "$1" = prometheus ]; then echo "$1"; else
    apt-get install -qq -s --no-install-recommends "$1" | awk '/^Inst / {print $2}'
  fi
}

fetch() {
  names=$(list "$1") && { [ -z "$names" ] || apt-get download -q $names; }
}

for package in $PACKAGES; do
  [ -e "$TOOLS/.$package" ] && continue
  command -v apt-get dpkg >/dev/null || { echo "test tools: no apt here; tests of $package are skipped"; continue; }
  mkdir -p "$TOOLS"
  download=$(mktemp -d)
  (cd "$download" && { fetch "$package" || { apt-get update -q && fetch "$package"; }; }) >&2 ||
    { echo "test tools: apt has no $package; its tests are skipped"; continue; }
  for archive in "$download"/*.deb; do
    [ -e "$archive" ] && dpkg -x "$archive" "$TOOLS"
  done
  rm -r "$download"
  touch "$TOOLS/.$package"
done
