// What the library exports.
#include "cpu.h"
#include "lookup_op.h"
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

CustomOpDomain* domain() {
  static const Owned<CustomOpDomain> made = [] {
    CustomOpDomain* all = nullptr;
    check(api().CreateCustomOpDomain("ai.ptq", &all));
    Owned<CustomOpDomain> owned(all);
#define PTQ_OP(Op)       \
  static const Op k##Op; \
  check(api().CustomOpDomain_Add(all, &k##Op));
#include "ops.inc"
#undef PTQ_OP
    return owned;
  }();
  return made.get();
}

}  // namespace

extern "C" __attribute__((visibility("default"))) const char* ptq_kernels() { return kernels(); }

extern "C" __attribute__((visibility("default"))) ptq::Status* RegisterCustomOps(ptq::SessionOptions* options,
                                                                                const ptq::ApiBase* base) {
  const ptq::Api* api = base->GetApi(ptq::kApiVersion);
  if (api == nullptr) return nullptr;  // an older runtime: it runs the functions that the model carries
  ptq::registered = api;
  if (kernels()[0] == 0) return nullptr;  // likewise: the plain kernels would be slower than those
  return ptq::guarded([&] { ptq::check(api->AddCustomOpDomain(options, domain())); });
}
