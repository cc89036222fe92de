#!/usr/bin/env bash
# Everything that running exported models takes: Node, a browser, a cross compiler, qemu, and packages in a folder.
# Usage: tools.sh FOLDER    installs Debian packages if it may; what is there already stays.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mkdir -p "$1" && cd "$1" && pwd)
missing=()
need() { command -v "$1" > /dev/null || missing+=("$2"); }
need npm npm; need chromium chromium; need qemu-aarch64-static qemu-user-static; need unzip unzip
need aarch64-linux-gnu-g++ g++-aarch64-linux-gnu; need cmake cmake; need gcc gcc
if [ ${#missing[@]} -gt 0 ]; then
    [ "$(id -u)" = 0 ] || { echo "missing: ${missing[*]}; install them first" >&2; exit 1; }
    apt-get -q update > "$folder/apt.log"
    DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends "${missing[@]}" >> "$folder/apt.log"
fi
cp "$here/package.json" "$folder/"
(cd "$folder" && npm install --silent --no-audit --no-fund --ignore-scripts 2>> npm.log)
"$here/arm64_root.sh" "$folder/arm64"
