// Holds ort_abi.h and ort_api.inc against onnxruntime's own header: it compiles where they say the same.
#include <onnxruntime_c_api.h>

#include <type_traits>

#include "ort_abi.h"

namespace {

// The type of ours that stands for a type of onnxruntime's; what has no name of its own in either stands for itself.
template <class T>
struct Ours {
  using type = T;
};
#define PTQ_TYPE(official, ours) \
  template <>                    \
  struct Ours<official> {        \
    using type = ptq::ours;      \
  };
PTQ_TYPE(OrtStatus, Status)
PTQ_TYPE(OrtSessionOptions, SessionOptions)
PTQ_TYPE(OrtCustomOpDomain, CustomOpDomain)
PTQ_TYPE(OrtValue, Value)
PTQ_TYPE(OrtTensorTypeAndShapeInfo, ShapeInfo)
PTQ_TYPE(OrtMemoryInfo, MemoryInfo)
PTQ_TYPE(OrtKernelInfo, KernelInfo)
PTQ_TYPE(OrtKernelContext, KernelContext)
PTQ_TYPE(OrtShapeInferContext, InferContext)
PTQ_TYPE(OrtOpAttr, OpAttribute)
PTQ_TYPE(OrtAllocator, Allocator)
PTQ_TYPE(OrtApi, Api)
PTQ_TYPE(OrtApiBase, ApiBase)
PTQ_TYPE(OrtCustomOp, CustomOp)
PTQ_TYPE(OrtErrorCode, ErrorCode)
PTQ_TYPE(ONNXTensorElementDataType, ElementType)
PTQ_TYPE(OrtOpAttrType, AttributeType)
PTQ_TYPE(OrtAllocatorType, AllocatorType)
PTQ_TYPE(OrtMemType, MemoryType)
PTQ_TYPE(OrtCustomOpInputOutputCharacteristic, Presence)

template <class T>
struct Ours<const T> {
  using type = const typename Ours<T>::type;
};
template <class T>
struct Ours<T*> {
  using type = typename Ours<T>::type*;
};
template <class R, class... A>
struct Ours<R(A...)> {
  using type = typename Ours<R>::type(typename Ours<A>::type...);
};
template <class R, class... A>  // ours may not throw either, and do not say so
struct Ours<R(A...) noexcept> : Ours<R(A...)> {};

template <class Official, class T>
constexpr bool same = std::is_same_v<typename Ours<Official>::type, T>;

namespace functions {  // the table's functions with the types of ort_api.inc
using namespace ptq;
#define PTQ_API(position, result, name, ...) using name = result (*)(__VA_ARGS__);
#include "ort_api.inc"
#undef PTQ_API
}  // namespace functions

#define PTQ_API(position, result, name, ...)                                                   \
  static_assert(offsetof(OrtApi, name) == (position) * sizeof(void*), "position of " #name);   \
  static_assert((position) * sizeof(void*) < sizeof(ptq::Api), "length of the table: " #name); \
  static_assert(same<decltype(OrtApi::name), functions::name>, "type of " #name);
#include "ort_api.inc"
#undef PTQ_API
static_assert(offsetof(ptq::Api, table) == 0, "start of the table");

#define PTQ_MEMBER(official, ours, name)                                                 \
  static_assert(offsetof(official, name) == offsetof(ptq::ours, name), "place of " #name); \
  static_assert(same<decltype(official::name), decltype(ptq::ours::name)>, "type of " #name);
PTQ_MEMBER(OrtApiBase, ApiBase, GetApi)
PTQ_MEMBER(OrtAllocator, Allocator, version)
PTQ_MEMBER(OrtAllocator, Allocator, Alloc)
PTQ_MEMBER(OrtAllocator, Allocator, Free)
static_assert(sizeof(ptq::ApiBase) == offsetof(OrtApiBase, GetVersionString), "end of ApiBase");
static_assert(sizeof(ptq::Allocator) == offsetof(OrtAllocator, Info), "end of Allocator");

PTQ_MEMBER(OrtCustomOp, CustomOp, version)
PTQ_MEMBER(OrtCustomOp, CustomOp, CreateKernel)
PTQ_MEMBER(OrtCustomOp, CustomOp, GetName)
PTQ_MEMBER(OrtCustomOp, CustomOp, GetExecutionProviderType)
PTQ_MEMBER(OrtCustomOp, CustomOp, GetInputType)
PTQ_MEMBER(OrtCustomOp, CustomOp, GetInputTypeCount)
PTQ_MEMBER(OrtCustomOp, CustomOp, GetOutputType)
PTQ_MEMBER(OrtCustomOp, CustomOp, GetOutputTypeCount)
PTQ_MEMBER(OrtCustomOp, CustomOp, KernelCompute)
PTQ_MEMBER(OrtCustomOp, CustomOp, KernelDestroy)
PTQ_MEMBER(OrtCustomOp, CustomOp, GetInputCharacteristic)
PTQ_MEMBER(OrtCustomOp, CustomOp, GetOutputCharacteristic)
PTQ_MEMBER(OrtCustomOp, CustomOp, GetInputMemoryType)
PTQ_MEMBER(OrtCustomOp, CustomOp, GetVariadicInputMinArity)
PTQ_MEMBER(OrtCustomOp, CustomOp, GetVariadicInputHomogeneity)
PTQ_MEMBER(OrtCustomOp, CustomOp, GetVariadicOutputMinArity)
PTQ_MEMBER(OrtCustomOp, CustomOp, GetVariadicOutputHomogeneity)
PTQ_MEMBER(OrtCustomOp, CustomOp, CreateKernelV2)
PTQ_MEMBER(OrtCustomOp, CustomOp, KernelComputeV2)
PTQ_MEMBER(OrtCustomOp, CustomOp, InferOutputShapeFn)
PTQ_MEMBER(OrtCustomOp, CustomOp, GetStartVersion)
PTQ_MEMBER(OrtCustomOp, CustomOp, GetEndVersion)
static_assert(sizeof(ptq::CustomOp) == offsetof(OrtCustomOp, GetMayInplace), "end of CustomOp: what follows is younger");

#define PTQ_VALUE(official, ours)                                                    \
  static_assert(static_cast<int64_t>(official) == static_cast<int64_t>(ptq::ours), #ours); \
  static_assert(sizeof(official) == sizeof(ptq::ours), "size of " #ours);
PTQ_VALUE(ORT_FAIL, ErrorCode::kFail)
PTQ_VALUE(ORT_INVALID_ARGUMENT, ErrorCode::kInvalidArgument)
PTQ_VALUE(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ElementType::kFloat)
PTQ_VALUE(ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, ElementType::kUint8)
PTQ_VALUE(ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8, ElementType::kInt8)
PTQ_VALUE(ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32, ElementType::kInt32)
PTQ_VALUE(ORT_OP_ATTR_INT, AttributeType::kInt)
PTQ_VALUE(ORT_OP_ATTR_INTS, AttributeType::kInts)
PTQ_VALUE(OrtArenaAllocator, AllocatorType::kArena)
PTQ_VALUE(OrtMemTypeDefault, MemoryType::kDefault)
PTQ_VALUE(INPUT_OUTPUT_REQUIRED, Presence::kRequired)
PTQ_VALUE(INPUT_OUTPUT_OPTIONAL, Presence::kOptional)

static_assert(ORT_API_VERSION >= ptq::kApiVersion, "the official header is older than the version that is asked for");
static_assert(same<RegisterCustomOpsFn, ptq::Status* (*)(ptq::SessionOptions*, const ptq::ApiBase*)>, "what is exported");

}  // namespace
