"""Export in onnxruntime's own format, for mobile builds."""

from __future__ import annotations

import contextlib
import io
import logging
from dataclasses import dataclass
from pathlib import Path

from ptq.core.errors import UnsupportedModelError
from ptq.exporters.bundle import Bundle, external_files
from ptq.files.scratch import scratch_folder
from ptq.runtime.opening import QUIET

WARNING = 2
"""What onnxruntime says if nobody tells it otherwise."""


@dataclass(frozen=True)
class OrtMobile:
    """model.ort with the list of operators that a reduced build of onnxruntime needs.

    What is computed from constants is computed now, because mobile builds do not: short codes become the int8 weights
    that kernels read (the format knows no 4-bit type), and operators of domain ai.ptq become their bodies.
    """

    def export(self, bundle: Bundle, folder: Path) -> None:
        """Write the model and the list of its operators into a folder.

        Args:
            bundle: The model and its examples.
            folder: Exists, empty.

        Raises:
            UnsupportedModelError: The format cannot hold the model.
        """
        from onnxruntime import set_default_logger_severity
        from onnxruntime.tools.convert_onnx_models_to_ort import OptimizationStyle, convert_onnx_models_to_ort

        if external_files(bundle.model):
            raise UnsupportedModelError(f"{bundle.model.name} keeps weights beside it; the .ort format holds one file")
        with scratch_folder() as name:
            bundle.put_model(Path(name))
            logging.disable(logging.INFO)  # the converter sets up logging of its own, on import
            set_default_logger_severity(QUIET)  # and sessions that say what they think of the user's model
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    convert_onnx_models_to_ort(
                        Path(name), output_dir=folder, optimization_styles=[OptimizationStyle.Fixed],
                        target_platform="arm", enable_type_reduction=True,
                    )  # fmt: skip
            except Exception as error:
                raise UnsupportedModelError(f"{bundle.model.name} cannot be converted to .ort ({error})") from error
            finally:
                logging.disable(logging.NOTSET)
                set_default_logger_severity(WARNING)
        for config in folder.glob("*.config"):  # without the folders of this machine
            lines = [line for line in config.read_text().splitlines() if not line.startswith("#")]
            config.write_text("\n".join(["# Operators of the models beside this file", *lines]) + "\n")
        bundle.put_check(folder)
