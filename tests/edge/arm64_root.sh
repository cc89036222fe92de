#!/usr/bin/env bash
# An arm64 Python with onnxruntime and numpy that runs under qemu-user, in a folder of its own, without root.
# Usage: arm64_root.sh FOLDER    does nothing if it is there already.
set -euo pipefail
folder=$(mkdir -p "$1" && cd "$1" && pwd)
[ -e "$folder/ready" ] && exit
cd "$folder"
mkdir -p state/lists/partial cache/archives/partial root/proc packages
apt=(-q -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o Dir::State="$folder/state" -o Dir::Cache="$folder/cache"
    -o Dir::State::status=/dev/null -o APT::Sandbox::User="$(id -un)")
python=$(apt-cache depends python3-minimal 2>/dev/null | grep -o 'python3\.[0-9]*-minimal' | head -1)
python=${python%-minimal}
apt-get "${apt[@]}" update > apt.log
apt-get "${apt[@]}" download libc6 libgcc-s1 libstdc++6 "$python-minimal" "lib$python-minimal" "lib$python-stdlib" zlib1g \
    libexpat1 libffi8 libssl3 libbz2-1.0 liblzma5 libcrypt1 libuuid1 >> apt.log
for package in *.deb; do dpkg-deb -x "$package" root; done
version=${python#python}
# As few versions apart from the host's as there are.
for name in onnxruntime numpy; do
    wanted=$("${PYTHON:-python3}" -c "import $name; print($name.__version__)")
    pip download -q --no-deps --only-binary=:all: --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 \
        --python-version "${version/./}" --implementation cp --abi "cp${version/./}" -d wheels "$name==$wanted"
done
for wheel in wheels/*.whl; do unzip -q -o "$wheel" -d packages; done
# onnxruntime reads the processor's features here; what it would find is the host's.
for n in 0 1; do
    printf 'processor\t: %s\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp ssbs\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x3\nCPU part\t: 0xd0c\nCPU revision\t: 1\n\n' "$n"
done > root/proc/cpuinfo
echo "$python" > ready
