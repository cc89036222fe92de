// Writes out the model that it carries. With onnxruntime: Ort::Session(env, model, sizeof model, options) opens it.
#include <cstdio>

static const unsigned char model[] = {
#include "model.inc"
};

int main() { return std::fwrite(model, 1, sizeof model, stdout) == sizeof model ? 0 : 1; }
