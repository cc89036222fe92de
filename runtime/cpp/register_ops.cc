// What the library exports.
#include "cpu.h"
#include "nhwc_qlinear_conv.h"
#include "ort.h"

// The instruction set of the kernels that would be registered here; empty if none.
extern "C" __attribute__((visibility("default"))) const char* ptq_kernels() {
  return ptq::has_avx512vnni() ? "avx512vnni" : "";
}

extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(OrtSessionOptions* options,
                                                                              const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(ptq::kApiVersion);
  if (api == nullptr) return nullptr;  // an older runtime: it runs the functions that the model carries
  Ort::InitApi(api);
  if (!ptq::has_avx512vnni()) return nullptr;  // likewise: the plain kernel would be slower than those
  try {
    static ptq::NhwcQLinearConv conv;
    static Ort::CustomOpDomain domain{"ai.ptq"};
    static const bool once = (domain.Add(&conv), true);
    static_cast<void>(once);
    Ort::UnownedSessionOptions{options}.Add(domain);
  } catch (const std::exception& error) {
    return api->CreateStatus(ORT_FAIL, error.what());
  }
  return nullptr;
}
