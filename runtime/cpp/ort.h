// onnxruntime's headers. Its API table is asked for by version when the library is registered, so that one binary
// serves every onnxruntime from 1.17 on; no function may be called that is younger.
#pragma once

#define ORT_API_MANUAL_INIT
#include "onnxruntime_cxx_api.h"
#undef ORT_API_MANUAL_INIT

namespace ptq {
constexpr uint32_t kApiVersion = 17;
}
