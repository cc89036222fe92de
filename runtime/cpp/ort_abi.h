// What the library uses of onnxruntime's C interface, which is binary compatible from version to version. Functions and
// members have onnxruntime's names; types have names of our own, so that a test can include the official header too.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ptq {

// One binary serves every onnxruntime from 1.17 on; nothing younger may be called or declared.
constexpr uint32_t kApiVersion = 17;

// Seen by address alone.
struct Status;
struct SessionOptions;
struct CustomOpDomain;
struct Value;
struct ShapeInfo;
struct MemoryInfo;
struct KernelInfo;
struct KernelContext;
struct InferContext;
struct OpAttribute;

enum class ErrorCode : int32_t { kFail = 1, kInvalidArgument = 2 };
enum class ElementType : int32_t { kFloat = 1, kUint8 = 2, kInt8 = 3, kInt32 = 6 };
enum class AttributeType : int32_t { kInt = 1, kInts = 2 };
enum class AllocatorType : int32_t { kArena = 1 };
enum class MemoryType : int32_t { kDefault = 0 };
enum class Presence : int32_t { kRequired = 0, kOptional = 1 };  // of an operator's input or output

struct Allocator {
  uint32_t version;
  void* (*Alloc)(Allocator*, size_t);
  void (*Free)(Allocator*, void*);
};

struct Api;

struct ApiBase {
  const Api* (*GetApi)(uint32_t version);  // null from a runtime that is older
};

// An operator, as far as version 17 reads it.
struct CustomOp {
  uint32_t version;
  void* (*CreateKernel)(const CustomOp*, const Api*, const KernelInfo*);
  const char* (*GetName)(const CustomOp*);
  const char* (*GetExecutionProviderType)(const CustomOp*);
  ElementType (*GetInputType)(const CustomOp*, size_t);
  size_t (*GetInputTypeCount)(const CustomOp*);
  ElementType (*GetOutputType)(const CustomOp*, size_t);
  size_t (*GetOutputTypeCount)(const CustomOp*);
  void (*KernelCompute)(void*, KernelContext*);
  void (*KernelDestroy)(void*);
  Presence (*GetInputCharacteristic)(const CustomOp*, size_t);
  Presence (*GetOutputCharacteristic)(const CustomOp*, size_t);
  MemoryType (*GetInputMemoryType)(const CustomOp*, size_t);
  int (*GetVariadicInputMinArity)(const CustomOp*);
  int (*GetVariadicInputHomogeneity)(const CustomOp*);
  int (*GetVariadicOutputMinArity)(const CustomOp*);
  int (*GetVariadicOutputHomogeneity)(const CustomOp*);
  Status* (*CreateKernelV2)(const CustomOp*, const Api*, const KernelInfo*, void**);
  Status* (*KernelComputeV2)(void*, KernelContext*);
  Status* (*InferOutputShapeFn)(const CustomOp*, InferContext*);
  int (*GetStartVersion)(const CustomOp*);
  int (*GetEndVersion)(const CustomOp*);
};

// The table of functions: pointers one after the other, of which those used have names and types.
struct Api {
#define PTQ_API(position, result, name, ...)                                  \
  template <class... Arguments>                                               \
  result name(Arguments... arguments) const {                                 \
    return reinterpret_cast<result (*)(__VA_ARGS__)>(table[position])(arguments...); \
  }
#include "ort_api.inc"
#undef PTQ_API

  void (*table[275])();
};

}  // namespace ptq
