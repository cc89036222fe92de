// What the library exports.
#include "cpu.h"
#include "matmul_nbits/matmul_nbits.h"
#include "matmul_nbits_ops.h"
#include "nhwc_qlinear_conv.h"
#include "ort.h"

namespace {

using namespace ptq;

// The instruction set of the kernels that would be registered here; empty if none.
const char* kernels() {
#if PTQ_X86
  if (has_avx512vnni()) return "avx512vnni";
  if (has_avxvnni()) return "avxvnni";
  if (has_avx2()) return "avx2";
#elif PTQ_ARM
  if (has_dotprod()) return "neon";
#endif
  return "";
}

const Ort::CustomOpDomain& domain() {
  static const Ort::CustomOpDomain made = [] {
    Ort::CustomOpDomain all{"ai.ptq"};
#define PTQ_OP(Op)       \
  static const Op k##Op; \
  all.Add(&k##Op);
#include "ops.inc"
#undef PTQ_OP
    return all;
  }();
  return made;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) const char* ptq_kernels() { return kernels(); }

extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(OrtSessionOptions* options,
                                                                              const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(ptq::kApiVersion);
  if (api == nullptr) return nullptr;  // an older runtime: it runs the functions that the model carries
  Ort::InitApi(api);
  if (kernels()[0] == 0) return nullptr;  // likewise: the plain kernels would be slower than those
  try {
    Ort::UnownedSessionOptions{options}.Add(domain());
  } catch (const std::exception& error) {
    return api->CreateStatus(ORT_FAIL, error.what());
  }
  return nullptr;
}
