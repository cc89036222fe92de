"""A build script, `python ../model.py . && python build.py`: a bad model ends it, a good one is always the same."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import ptq

FOLDER = Path(__file__).parent
OUTPUT = FOLDER / "model.int8.onnx"

recipe = ptq.Recipe(goals=ptq.Goals(min_sqnr_db=25.0))
try:
    result = ptq.quantize(FOLDER / "model.onnx", FOLDER / "calib.npz", recipe)
except ptq.PtqError as error:
    sys.exit(f"error: {error}")
for finding in result.report.verdict.findings:
    print(f"{finding.level}: {finding.text}")
if not result.report.verdict.passed:
    sys.exit(1)
result.save(OUTPUT)
print(f"{OUTPUT.name} {hashlib.sha256(OUTPUT.read_bytes()).hexdigest()}")
