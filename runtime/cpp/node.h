// What the operators share: reading a node's constants and attributes, refusing by name, errors as statuses.
#pragma once

#include <algorithm>
#include <cmath>
#include <exception>
#include <string>
#include <vector>

#include "ort.h"

namespace ptq {

constexpr int64_t kSmallWork = 1 << 20;  // multiplications below which threads cost more than they save
constexpr int64_t kMaxTasks = 16;

// Reads the constants of a node; what is wrong with one is refused with the operator's and the node's name.
class NodeReader {
 public:
  NodeReader(const char* op_type, const OrtKernelInfo* info)
      : info_(info), name_(std::string("ai.ptq::") + op_type + " " + info_.GetNodeName()) {}

  const std::string& name() const { return name_; }

  [[noreturn]] void refuse(const std::string& reason) const {
    throw Ort::Exception(name_ + ": " + reason, ORT_INVALID_ARGUMENT);
  }

  Ort::ConstValue constant_value(size_t index, const char* what) const {
    int is_constant = 0;
    const Ort::ConstValue value = info_.GetTensorConstantInput(index, &is_constant);
    if (!is_constant) refuse(std::string(what) + " is computed at run time; expected a constant");
    return value;
  }

  template <typename T>
  std::vector<T> constant(size_t index, const char* what, std::vector<int64_t>* shape = nullptr) const {
    const Ort::ConstValue value = constant_value(index, what);
    const auto type = value.GetTensorTypeAndShapeInfo();
    if (shape) *shape = type.GetShape();
    const T* data = value.GetTensorData<T>();
    return std::vector<T>(data, data + type.GetElementCount());
  }

  template <typename T>
  T scalar(size_t index, const char* what) const {
    const std::vector<T> values = constant<T>(index, what);
    if (values.size() != 1) refuse(std::string(what) + " has " + std::to_string(values.size()) + " elements; expected 1");
    return values[0];
  }

  size_t num_inputs() const { return info_.GetInputCount(); }

  std::vector<int64_t> integers(const char* key, std::vector<int64_t> otherwise) const {
    std::vector<int64_t> found;
    try {
      found = info_.GetAttributes<int64_t>(key);
    } catch (const Ort::Exception&) {
      return otherwise;
    }
    if (found.empty()) return otherwise;
    if (found.size() != otherwise.size()) {
      refuse(std::string(key) + " has " + std::to_string(found.size()) + " values; expected " +
             std::to_string(otherwise.size()));
    }
    return found;
  }

  template <typename T>
  T attribute(const char* key, T otherwise) const {
    try {
      return info_.GetAttribute<T>(key);
    } catch (const Ort::Exception&) {
      return otherwise;
    }
  }

 private:
  Ort::ConstKernelInfo info_;
  std::string name_;
};

inline bool is_usable_scale(float scale) { return scale > 0 && std::isfinite(scale); }

inline bool within(const std::vector<int64_t>& values, int64_t low, int64_t high) {
  return std::all_of(values.begin(), values.end(), [=](int64_t v) { return low <= v && v <= high; });
}

// Runs `body`; what it throws becomes a status.
template <class Body>
OrtStatusPtr guarded(const OrtApi& api, Body body) {
  try {
    body();
    return nullptr;
  } catch (const Ort::Exception& error) {
    return api.CreateStatus(error.GetOrtErrorCode(), error.what());
  } catch (const std::exception& error) {
    return api.CreateStatus(ORT_FAIL, error.what());
  }
}

}  // namespace ptq
