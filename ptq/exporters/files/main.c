/* Runs model.onnx (check.onnx, with fixed draws, where the model draws random numbers) once through ONNX Runtime's C API,
   with the operator library if one is given, and compares the outputs with expected_*.bin. Usage: main [LIBRARY.so] */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "onnxruntime_c_api.h"
#include "model.h" /* CHECKED: the model's file; INPUTS, OUTPUTS: name, file, type, shape and size of each value */
#define CHECK(call) do { OrtStatus* s = (call); if (s) { fprintf(stderr, "%s\n", ort->GetErrorMessage(s)); exit(2); } } while (0)

static void* read_file(const char* path, size_t size) {
    FILE* file = fopen(path, "rb");
    void* data = malloc(size);
    if (!file || !data || fread(data, 1, size, file) != size) { fprintf(stderr, "cannot read %s\n", path); exit(2); }
    fclose(file);
    return data;
}

int main(int argc, char** argv) {
    const OrtApi* ort = OrtGetApiBase()->GetApi(17);
    OrtEnv* env; OrtSessionOptions* options; OrtSession* session; OrtMemoryInfo* memory;
    CHECK(ort->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "model", &env));
    CHECK(ort->CreateSessionOptions(&options));
    if (argc > 1) CHECK(ort->RegisterCustomOpsLibrary_V2(options, argv[1]));
    CHECK(ort->CreateSession(env, CHECKED, options, &session));
    CHECK(ort->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));
    const char *input_names[NUM_INPUTS], *output_names[NUM_OUTPUTS];
    OrtValue *inputs[NUM_INPUTS], *outputs[NUM_OUTPUTS] = {0};
    for (int i = 0; i < NUM_INPUTS; ++i) {
        const Value* v = &INPUTS[i];
        input_names[i] = v->name;
        CHECK(ort->CreateTensorWithDataAsOrtValue(memory, read_file(v->file, v->bytes), v->bytes, v->dims, v->rank, v->type, &inputs[i]));
    }
    for (int i = 0; i < NUM_OUTPUTS; ++i) output_names[i] = OUTPUTS[i].name;
    CHECK(ort->Run(session, NULL, input_names, (const OrtValue* const*)inputs, NUM_INPUTS, output_names, NUM_OUTPUTS, outputs));
    int wrong = 0;
    for (int i = 0; i < NUM_OUTPUTS; ++i) {
        const float* expected = read_file(OUTPUTS[i].file, OUTPUTS[i].bytes);
        float *found, largest = 0, apart = 0;
        CHECK(ort->GetTensorMutableData(outputs[i], (void**)&found));
        if (OUTPUTS[i].type != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) { wrong |= memcmp(found, expected, OUTPUTS[i].bytes) != 0; continue; }
        for (size_t k = 0; k < OUTPUTS[i].bytes / 4; ++k) { largest = fmaxf(largest, fabsf(expected[k])); apart = fmaxf(apart, fabsf(found[k] - expected[k])); }
        printf("%s: largest value %g, largest difference %g\n", OUTPUTS[i].name, largest, apart);
        wrong |= !(apart <= 0.05f * largest);
    }
    return wrong;
}
