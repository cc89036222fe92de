"""Errors that a user can cause or meet.

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
    """Base of all errors that are the user's to mend."""


class InputError(PtqError):
    """A file, an array or a path given by the user that cannot be used."""


class RecipeError(PtqError):
    """A recipe, preset or option that is wrong; the message carries the key path."""


class UnsupportedModelError(PtqError):
    """A model that is valid ONNX, yet outside what can be quantized."""


class CalibrationError(PtqError):
    """A calibration run that gave no usable statistics for a tensor or layer."""


class EquivalenceError(PtqError):
    """A graph pass that changed the outputs of the float model; the message names the pass."""


class VerificationError(PtqError):
    """A quantized model that onnxruntime cannot load or run, or whose outputs are not finite."""
