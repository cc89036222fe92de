"""Models between disk, memory and onnxruntime."""
