"""Export for 64-bit ARM Linux."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from ptq.core.errors import UnsupportedModelError
from ptq.exporters.bundle import FILES, Bundle
from ptq.files.scratch import scratch_folder
from ptq.runtime.native import NAME, SOURCES

COMPILER = "aarch64-linux-gnu-g++"


@dataclass(frozen=True)
class Arm64:
    """The model, a script that checks it on the device, and the operator library where a cross compiler is at hand.

    The library is compiled with CMake and aarch64-linux-gnu-g++. Without them the bodies of its operators run.
    """

    def export(self, bundle: Bundle, folder: Path) -> None:
        """Write model, check and library into a folder.

        Args:
            bundle: The model and its examples.
            folder: Exists, empty.

        Raises:
            UnsupportedModelError: The compiler is there and fails.
        """
        bundle.put_model(folder)
        bundle.put_check(folder)
        if shutil.which(COMPILER) and shutil.which("cmake"):
            cross_compile(folder)


def cross_compile(folder: Path) -> None:
    """Build the operator library into a folder.

    Raises:
        UnsupportedModelError: The compiler fails.
    """
    with scratch_folder() as build:
        toolchain = f"-DCMAKE_TOOLCHAIN_FILE={FILES / 'aarch64.cmake'}"
        for step in (["-S", str(SOURCES), "-B", build, toolchain], ["--build", build]):
            done = subprocess.run(["cmake", *step], capture_output=True, text=True, check=False)
            if done.returncode:
                why = " ".join((done.stderr.strip() or done.stdout.strip())[-300:].split())
                advice = "mend it, or take it off PATH to export without the library"
                raise UnsupportedModelError(f"{COMPILER} cannot build the operator library: {why}; {advice}")
        shutil.copyfile(Path(build) / NAME, folder / NAME)
