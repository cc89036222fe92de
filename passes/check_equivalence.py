"""Proof that preparing the graph did not change what it computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq.core.errors import EquivalenceError
from ptq.models.sessions import run, session_of

TOLERANCE = 1e-4
"""Largest difference allowed, as a fraction of the output's largest magnitude: reassociated float32 sums, with room."""


def float_outputs(
    model: ir.Model, feed: Mapping[str, NDArray[Any]], custom_ops: Sequence[str | Path] = ()
) -> dict[str, NDArray[Any]]:
    """Run a model exactly as it is written, with onnxruntime's own optimizations off.

    Args:
        model: The model.
        feed: One sample.
        custom_ops: Libraries the model needs.

    Returns:
        Output name -> value.
    """
    with session_of(model, custom_ops=custom_ops, optimization="none") as session:
        names = [str(value.name) for value in model.graph.outputs]
        return dict(zip(names, run(session, dict(feed), names), strict=True))


def require_same(
    name: str, before: Mapping[str, NDArray[Any]], after: Mapping[str, NDArray[Any]], tolerance: float = TOLERANCE
) -> None:
    """Refuse a change of any output.

    Args:
        name: The pass, for the message.
        before: Outputs before it.
        after: Outputs after it.
        tolerance: Of the largest magnitude of an output.

    Raises:
        EquivalenceError: An output is missing, has another shape, or differs by more than `tolerance`.
    """
    for output, reference in before.items():
        if output not in after or after[output].shape != reference.shape:
            found = after[output].shape if output in after else "nothing"
            raise EquivalenceError(f"pass {name} changed output {output!r} from shape {reference.shape} to {found}")
        if reference.dtype.kind not in "fc" or not reference.size:
            if not np.array_equal(reference, after[output]):
                raise EquivalenceError(f"pass {name} changed output {output!r}")
            continue
        finite = np.isfinite(reference)
        difference = np.abs(reference[finite] - after[output][finite]).max(initial=0.0)
        allowed = tolerance * float(np.abs(reference[finite]).max(initial=1e-30))
        if not np.array_equal(finite, np.isfinite(after[output])) or difference > allowed:
            raise EquivalenceError(
                f"pass {name} changed output {output!r} by {difference:.3g}, allowed {allowed:.3g}; "
                "please report the model"
            )
