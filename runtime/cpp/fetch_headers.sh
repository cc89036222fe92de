#!/usr/bin/env bash
# onnxruntime's own headers from Debian trixie's libonnxruntime-dev, unpacked without root into a folder of one's own.
# Tests compare with them and compile exported C programs with them; the operator library is built without them.
# The mirror is the one this machine's apt uses already; only the suite differs.
# Usage: fetch_headers.sh FOLDER    prints the include folder; does nothing if it is there already.
set -euo pipefail
folder=$(mkdir -p "$1" && cd "$1" && pwd)
found() { find "$folder/root" -name onnxruntime_c_api.h -printf '%h\n' 2>/dev/null | head -1; }
if [ -n "$(found)" ]; then found; exit; fi

mirror=$(sed -n 's/^URIs: *\([^ ]*\).*/\1/p; s/^deb \(\[[^]]*\] \)\?\([^ ]*\) .*/\2/p' \
    /etc/apt/sources.list.d/*.sources /etc/apt/sources.list.d/*.list /etc/apt/sources.list 2>/dev/null | head -1 || true)
[ -n "$mirror" ] || { echo "no apt sources on this machine; set ORT_INCLUDE_DIR to onnxruntime's headers" >&2; exit 1; }
keys=/usr/share/keyrings/debian-archive-keyring.gpg
mkdir -p "$folder/state/lists/partial" "$folder/cache/archives/partial" "$folder/root"
echo "deb [signed-by=$keys] $mirror trixie main" > "$folder/sources.list"
apt=(-q -o Dir::State="$folder/state" -o Dir::Cache="$folder/cache" -o Dir::State::status=/dev/null
    -o Dir::Etc::sourcelist="$folder/sources.list" -o Dir::Etc::sourceparts=- -o APT::Get::List-Cleanup=0
    -o APT::Sandbox::User="$(id -un)")
cd "$folder"
apt-get "${apt[@]}" update >&2
apt-get "${apt[@]}" download libonnxruntime-dev >&2
dpkg-deb -x libonnxruntime-dev_*.deb root
found
