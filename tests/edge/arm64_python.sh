#!/usr/bin/env bash
# Runs that Python. Usage: arm64_python.sh FOLDER ARGUMENTS...
set -euo pipefail
folder=$(cd "$1" && pwd); shift
python=$(cat "$folder/ready")
export PYTHONPATH="$folder/packages${PTQ_ARM_PATH:+:$PTQ_ARM_PATH}" PYTHONHOME="$folder/root/usr" PYTHONDONTWRITEBYTECODE=1
exec qemu-aarch64-static -cpu neoverse-n1 -L "$folder/root" "$folder/root/usr/bin/$python" -S "$@"
