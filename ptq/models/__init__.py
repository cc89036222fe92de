"""Models on their way between disk, memory and onnxruntime."""
