// What the operators share: reading a node's constants and attributes, refusing by name.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include "ort.h"

namespace ptq {

constexpr int64_t kSmallWork = 1 << 20;  // multiplications below which threads cost more than they save
constexpr int64_t kMaxTasks = 16;

// Reads the constants of a node; what is wrong with one is refused with the operator's and the node's name.
class NodeReader {
 public:
  NodeReader(const char* op_type, const KernelInfo* info)
      : info_(info), name_(std::string("ai.ptq::") + op_type + " " + node_name()) {}

  const std::string& name() const { return name_; }

  [[noreturn]] void refuse(const std::string& reason) const {
    throw Error(ErrorCode::kInvalidArgument, name_ + ": " + reason);
  }

  Tensor constant_value(size_t index, const char* what) const {
    int is_constant = 0;
    const Value* value = nullptr;
    check(api().KernelInfoGetConstantInput_tensor(info_, index, &is_constant, &value));
    if (!is_constant) refuse(std::string(what) + " is computed at run time; expected a constant");
    return Tensor(value);
  }

  template <typename T>
  std::vector<T> constant(size_t index, const char* what, Shape* shape = nullptr) const {
    const Tensor value = constant_value(index, what);
    const Shape dims = value.shape();
    if (shape) *shape = dims;
    const T* data = value.data<T>();
    const int64_t count = std::accumulate(dims.begin(), dims.end(), int64_t{1}, std::multiplies<int64_t>());
    return std::vector<T>(data, data + count);
  }

  template <typename T>
  T scalar(size_t index, const char* what) const {
    const std::vector<T> values = constant<T>(index, what);
    if (values.size() != 1) refuse(std::string(what) + " has " + std::to_string(values.size()) + " elements; expected 1");
    return values[0];
  }

  size_t num_inputs() const {
    size_t count = 0;
    check(api().KernelInfo_GetInputCount(info_, &count));
    return count;
  }

  std::vector<int64_t> integers(const char* key, std::vector<int64_t> otherwise) const {
    size_t count = 0;
    if (failed(api().KernelInfoGetAttributeArray_int64(info_, key, nullptr, &count)) || count == 0) return otherwise;
    std::vector<int64_t> found(count);
    check(api().KernelInfoGetAttributeArray_int64(info_, key, found.data(), &count));
    if (found.size() != otherwise.size()) {
      refuse(std::string(key) + " has " + std::to_string(found.size()) + " values; expected " +
             std::to_string(otherwise.size()));
    }
    return found;
  }

  int64_t integer(const char* key, int64_t otherwise) const {
    int64_t found = 0;
    return failed(api().KernelInfoGetAttribute_int64(info_, key, &found)) ? otherwise : found;
  }

  float number(const char* key, float otherwise) const {
    float found = 0;
    return failed(api().KernelInfoGetAttribute_float(info_, key, &found)) ? otherwise : found;
  }

 private:
  std::string node_name() const {
    size_t size = 0;  // with the zero at its end
    check(api().KernelInfo_GetNodeName(info_, nullptr, &size));
    std::string name(size, 0);
    check(api().KernelInfo_GetNodeName(info_, name.data(), &size));
    return name.c_str();
  }

  const KernelInfo* info_;
  std::string name_;
};

inline bool is_usable_scale(float scale) { return scale > 0 && std::isfinite(scale); }

inline bool within(const std::vector<int64_t>& values, int64_t low, int64_t high) {
  return std::all_of(values.begin(), values.end(), [=](int64_t v) { return low <= v && v <= high; });
}

}  // namespace ptq
