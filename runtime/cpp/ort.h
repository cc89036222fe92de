// onnxruntime's C interface in C++: errors as exceptions inside and as statuses outside, tensors, what an operator is.
#pragma once

#include <exception>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "ort_abi.h"

namespace ptq {

using Shape = std::vector<int64_t>;

inline const Api* registered = nullptr;  // the runtime's table, from the registration on
inline const Api& api() { return *registered; }

class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ErrorCode code() const { return code_; }

 private:
  ErrorCode code_;
};

// Takes a status; whether it was an error.
inline bool failed(Status* status) {
  if (status) api().ReleaseStatus(status);
  return status != nullptr;
}

[[noreturn, gnu::cold, gnu::noinline]] inline void raise(Status* status) {
  const Error error(api().GetErrorCode(status), api().GetErrorMessage(status));
  api().ReleaseStatus(status);
  throw error;
}

// Takes a status and throws what it says.
inline void check(Status* status) {
  if (status) raise(status);
}

// What is being handled, as a status.
[[gnu::cold, gnu::noinline]] inline Status* caught() noexcept {
  try {
    throw;
  } catch (const Error& error) {
    return api().CreateStatus(error.code(), error.what());
  } catch (const std::exception& error) {
    return api().CreateStatus(ErrorCode::kFail, error.what());
  }
}

// Runs `body`; what it throws becomes a status.
template <class Body>
Status* guarded(Body body) {
  try {
    body();
    return nullptr;
  } catch (...) {
    return caught();
  }
}

inline Shape dims_of(const ShapeInfo* info) {
  size_t rank = 0;
  check(api().GetDimensionsCount(info, &rank));
  Shape dims(rank);
  check(api().GetDimensions(info, dims.data(), rank));
  return dims;
}

struct Release {
  void operator()(ShapeInfo* info) const { api().ReleaseTensorTypeAndShapeInfo(info); }
  void operator()(MemoryInfo* info) const { api().ReleaseMemoryInfo(info); }
  void operator()(Allocator* allocator) const { api().ReleaseAllocator(allocator); }
  void operator()(CustomOpDomain* domain) const { api().ReleaseCustomOpDomain(domain); }
};

template <class T>
using Owned = std::unique_ptr<T, Release>;

// A tensor of the runtime's; the element type is the operator's declaration, which the runtime has checked.
class Tensor {
 public:
  explicit Tensor(const Value* value) : value_(const_cast<Value*>(value)) {}

  Shape shape() const {
    ShapeInfo* info = nullptr;
    check(api().GetTensorTypeAndShape(value_, &info));
    return dims_of(Owned<ShapeInfo>(info).get());
  }

  template <class T>
  T* data() const {
    void* data = nullptr;
    check(api().GetTensorMutableData(value_, &data));
    return static_cast<T*>(data);
  }

 private:
  Value* value_;
};

// One call of a kernel.
class Call {
 public:
  explicit Call(KernelContext* context) : context_(context) {}

  Tensor input(size_t index) const {
    const Value* value = nullptr;
    check(api().KernelContext_GetInput(context_, index, &value));
    return Tensor(value);
  }

  Tensor output(const Shape& shape) const {
    Value* value = nullptr;
    check(api().KernelContext_GetOutput(context_, 0, shape.data(), shape.size(), &value));
    return Tensor(value);
  }

  // Of the session's arena.
  Owned<Allocator> allocator() const {
    MemoryInfo* info = nullptr;
    check(api().CreateCpuMemoryInfo(AllocatorType::kArena, MemoryType::kDefault, &info));
    const Owned<MemoryInfo> owned(info);
    Allocator* allocator = nullptr;
    check(api().KernelContext_GetAllocator(context_, info, &allocator));
    return Owned<Allocator>(allocator);
  }

  // task(data, index) for every index below count, on the session's threads.
  void in_parallel(void (*task)(void*, size_t), int64_t count, void* data) const {
    check(api().KernelContext_ParallelFor(context_, task, static_cast<size_t>(count), 0, data));
  }

 private:
  KernelContext* context_;
};

// What is known of a node before it runs. A dimension is its size, or -1 and perhaps a name.
class Inference {
 public:
  struct Dim {
    int64_t size = -1;
    const char* name = "";
    bool known() const { return size >= 0; }
  };
  using Dims = std::vector<Dim>;

  explicit Inference(InferContext* context) : context_(context) {}

  Dims input(size_t index) const {
    ShapeInfo* info = nullptr;  // the context's own
    check(api().ShapeInferContext_GetInputTypeShape(context_, index, &info));
    const Shape sizes = dims_of(info);
    std::vector<const char*> names(sizes.size(), nullptr);
    check(api().GetSymbolicDimensions(info, names.data(), names.size()));
    Dims dims(sizes.size());
    for (size_t i = 0; i < sizes.size(); ++i) {
      const bool named = names[i] != nullptr && names[i][0] != 0;
      dims[i] = {named ? -1 : sizes[i], named ? names[i] : ""};
    }
    return dims;
  }

  int64_t integer(const char* key, int64_t otherwise) const {
    int64_t found = otherwise;
    size_t bytes = 0;
    const OpAttribute* attribute = find(key);
    if (!attribute || failed(api().ReadOpAttr(attribute, AttributeType::kInt, &found, sizeof found, &bytes))) {
      return otherwise;
    }
    return found;
  }

  // As many as the default has, or the default.
  Shape integers(const char* key, const Shape& otherwise) const {
    Shape found(otherwise.size());
    size_t bytes = 0;
    const size_t room = found.size() * sizeof(int64_t);
    const OpAttribute* attribute = find(key);
    if (!attribute || failed(api().ReadOpAttr(attribute, AttributeType::kInts, found.data(), room, &bytes))) {
      return otherwise;
    }
    return bytes == room ? found : otherwise;
  }

  void set_output(const Dims& dims, ElementType type) const {
    ShapeInfo* info = nullptr;
    check(api().CreateTensorTypeAndShapeInfo(&info));
    const Owned<ShapeInfo> owned(info);
    Shape sizes;
    std::vector<const char*> names;
    for (const Dim& dim : dims) {
      sizes.push_back(dim.size);
      names.push_back(dim.name);
    }
    check(api().SetTensorElementType(info, type));
    check(api().SetDimensions(info, sizes.data(), sizes.size()));
    check(api().SetSymbolicDimensions(info, names.data(), names.size()));
    check(api().ShapeInferContext_SetOutputTypeShape(context_, 0, info));
  }

 private:
  const OpAttribute* find(const char* key) const {
    const OpAttribute* attribute = nullptr;
    return failed(api().ShapeInferContext_GetAttribute(context_, key, &attribute)) ? nullptr : attribute;
  }

  InferContext* context_;
};

// A node's kernel: constants read, ready to be called from several threads.
class Kernel {
 public:
  virtual ~Kernel() = default;
  virtual void compute(const Call& call) const = 0;
};

// An operator with one output, described by the static functions of `Op`:
//   const char* name(); size_t num_inputs(); ElementType input_type(size_t); Presence presence(size_t);
//   ElementType output_type(); Kernel* create(const KernelInfo*); void infer(const Inference&);
template <class Op>
struct Operator : CustomOp {
  Operator() : CustomOp{} {
    version = kApiVersion;
    GetName = [](const CustomOp*) { return Op::name(); };
    GetExecutionProviderType = [](const CustomOp*) { return "CPUExecutionProvider"; };
    GetInputTypeCount = [](const CustomOp*) { return Op::num_inputs(); };
    GetInputType = [](const CustomOp*, size_t index) { return Op::input_type(index); };
    GetInputCharacteristic = [](const CustomOp*, size_t index) { return Op::presence(index); };
    GetInputMemoryType = [](const CustomOp*, size_t) { return MemoryType::kDefault; };
    GetOutputTypeCount = [](const CustomOp*) { return size_t{1}; };
    GetOutputType = [](const CustomOp*, size_t) { return Op::output_type(); };
    GetOutputCharacteristic = [](const CustomOp*, size_t) { return Presence::kRequired; };
    GetStartVersion = [](const CustomOp*) { return 1; };
    GetEndVersion = [](const CustomOp*) { return std::numeric_limits<int>::max(); };
    InferOutputShapeFn = [](const CustomOp*, InferContext* context) {
      return guarded([&] { Op::infer(Inference(context)); });
    };
    CreateKernelV2 = [](const CustomOp*, const Api*, const KernelInfo* info, void** kernel) {
      return guarded([&] { *kernel = Op::create(info); });
    };
    KernelComputeV2 = [](void* kernel, KernelContext* context) {
      return guarded([&] { static_cast<const Kernel*>(kernel)->compute(Call(context)); });
    };
    KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  }
};

}  // namespace ptq
