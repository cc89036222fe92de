"""The errors a user can cause or meet.

    PtqError
    |-- InputError            a model, data or output path is at fault
    |-- RecipeError           a recipe or option has a wrong key, type or value
    |-- UnsupportedModelError the model is valid, but this tool cannot treat it
    |-- CalibrationError      the data runs, but yields no usable statistics
    |-- EquivalenceError      a pass changed what the float model computes
    `-- VerificationError     the quantized model does not load, run or stay finite

Every message is one line: what is wrong, where, expected against found, and what to do next. The command line
prints it and exits with code 2. Anything else that is raised is a bug of ours.
"""


class PtqError(Exception):
    """Base of all errors that are the user's to fix."""


class InputError(PtqError):
    """A file, an array or a path given by the user cannot be used."""


class RecipeError(PtqError):
    """A recipe, preset or option is wrong; the message carries the key path."""


class UnsupportedModelError(PtqError):
    """The model is valid ONNX, yet outside what can be quantized."""


class CalibrationError(PtqError):
    """The calibration run gave no usable statistics for a tensor or layer."""


class EquivalenceError(PtqError):
    """A graph pass changed the outputs of the float model; the message names the pass."""


class VerificationError(PtqError):
    """The quantized model cannot be loaded or run by onnxruntime, or its outputs are not finite."""
