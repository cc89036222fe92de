#include "nhwc_qlinear_conv.h"

#include <numeric>

#include "grouped_conv/grouped_conv.h"
#include "node.h"

namespace ptq {
namespace {

struct Task {
  const GroupedConv* layer;
  const ConvShape* shape;
  GroupedConvKernel kernel;
  const uint8_t* x;
  uint8_t* y;
  int64_t rows, tasks;
};

void run_task(void* data, size_t index) {
  const Task& task = *static_cast<const Task*>(data);
  const int64_t i = static_cast<int64_t>(index);
  thread_local std::vector<uint32_t> scratch;
  task.kernel(*task.layer, *task.shape, task.x, task.y, task.rows * i / task.tasks, task.rows * (i + 1) / task.tasks,
              scratch);
}

int64_t out_size(int64_t size, int64_t pads, int64_t kernel, int64_t dilation, int64_t stride) {
  return (size + pads - dilation * (kernel - 1) - 1) / stride + 1;
}

const char* name_of(bool with_center) { return with_center ? "NhwcQLinearConvWithCenter" : "NhwcQLinearConv"; }

class ConvKernel : public Kernel {
 public:
  ConvKernel(bool with_center, const KernelInfo* info) {
    const NodeReader read(name_of(with_center), info);
    name_ = read.name();
    std::vector<int64_t> dims;
    layer_.weight = read.constant<int8_t>(3, "w", &dims);
    if (dims.size() != 4 || !within(dims, 1, 1 << 24)) read.refuse("w is not [M, C / group, kH, kW]");
    const std::vector<int64_t> strides = read.integers("strides", {1, 1});
    const std::vector<int64_t> dilations = read.integers("dilations", {1, 1});
    pads_ = read.integers("pads", {0, 0, 0, 0});
    const int64_t group = read.integer("group", 1);
    if (!within(strides, 1, 1 << 16) || !within(dilations, 1, 1 << 16) || !within(pads_, 0, 1 << 16)) {
      read.refuse("strides, dilations or pads are out of range");
    }
    if (group < 1 || dims[0] % group != 0) {
      read.refuse(std::to_string(dims[0]) + " features do not divide into " + std::to_string(group) + " groups");
    }
    ConvShape& s = layer_.shape;
    s = ConvShape{0,       0,          0,          dims[1] * group, 0,          0,       dims[0],
                  group,   dims[2],    dims[3],    strides[0],      strides[1], dilations[0], dilations[1],
                  pads_[0], pads_[1]};
    const int64_t products = s.channels_per_group() * s.taps();
    if (products > (int64_t{1} << 31) / (255 * 128) - 2) read.refuse("its sums would not fit into 32 bits");

    layer_.x_zero = read.scalar<uint8_t>(2, "x_zero_point");
    layer_.y_zero = read.scalar<uint8_t>(6, "y_zero_point");
    read_sum(read, layer_.weight, 4, read.num_inputs() > 7 ? 7 : 0, layer_.bias, layer_.multiplier);
    if (with_center) {
      layer_.center = read.constant<int8_t>(8, "center", &dims);
      if (dims != std::vector<int64_t>{s.features, s.channels_per_group(), 1, 1}) {
        read.refuse("center is not [M, C / group, 1, 1]");
      }
      read_sum(read, layer_.center, 9, 10, layer_.center_bias, layer_.center_multiplier);
    }
    kernel_ = choose_grouped_conv(layer_);
  }

  void compute(const Call& call) const override {
    const Tensor x = call.input(0);
    const Shape dims = x.shape();
    ConvShape shape = layer_.shape;
    if (dims.size() != 4 || dims[3] != shape.channels) {
      refuse("x is not [N, H, W, " + std::to_string(shape.channels) + "]");
    }
    shape.batch = dims[0];
    shape.height = dims[1];
    shape.width = dims[2];
    shape.out_height =
        out_size(dims[1], pads_[0] + pads_[2], shape.kernel_height, shape.dilation_height, shape.stride_height);
    shape.out_width =
        out_size(dims[2], pads_[1] + pads_[3], shape.kernel_width, shape.dilation_width, shape.stride_width);
    const int64_t reach_y = (shape.kernel_height - 1) * shape.dilation_height;
    const int64_t reach_x = (shape.kernel_width - 1) * shape.dilation_width;
    if (dims[1] + pads_[0] + pads_[2] <= reach_y || dims[2] + pads_[1] + pads_[3] <= reach_x) {
      refuse("x is smaller than the kernel");
    }
    const Tensor y = call.output({shape.batch, shape.out_height, shape.out_width, shape.features});
    const int64_t rows = shape.batch * shape.out_height;
    const int64_t work = rows * shape.out_width * shape.features * shape.channels_per_group() * shape.taps();
    if (work == 0) return;
    Task task{&layer_, &shape, kernel_, x.data<uint8_t>(), y.data<uint8_t>(), rows, 1};
    if (work < kSmallWork) {
      run_task(&task, 0);
      return;
    }
    task.tasks = std::min(rows, kMaxTasks);
    call.in_parallel(run_task, task.tasks, &task);
  }

 private:
  [[noreturn]] void refuse(const std::string& reason) const {
    throw Error(ErrorCode::kInvalidArgument, name_ + ": " + reason);
  }

  // Scale and bias of a sum of products, in steps of the output; `bias_index` 0 for none.
  void read_sum(const NodeReader& read, const std::vector<int8_t>& weight, size_t scale_index, size_t bias_index,
                std::vector<int32_t>& bias, std::vector<float>& multiplier) const {
    const int64_t features = layer_.shape.features;
    const float x_scale = read.scalar<float>(1, "x_scale"), y_scale = read.scalar<float>(5, "y_scale");
    const std::vector<float> w_scale = read.constant<float>(scale_index, "w_scale");
    if (w_scale.size() != 1 && w_scale.size() != static_cast<size_t>(features)) {
      read.refuse("w_scale has " + std::to_string(w_scale.size()) + " elements; expected 1 or one per feature");
    }
    if (!is_usable_scale(x_scale) || !is_usable_scale(y_scale) ||
        !std::all_of(w_scale.begin(), w_scale.end(), is_usable_scale)) {
      read.refuse("a scale is not positive and finite");
    }
    bias.assign(features, 0);
    if (bias_index) bias = read.constant<int32_t>(bias_index, "B");
    if (bias.size() != static_cast<size_t>(features)) read.refuse("B has not one element per feature");
    multiplier.resize(features);
    for (int64_t m = 0; m < features; ++m) {
      multiplier[m] = x_scale * w_scale[w_scale.size() == 1 ? 0 : m] / y_scale;
      if (!std::isfinite(multiplier[m])) read.refuse("its scales are too far apart");
      bias[m] = static_cast<int32_t>(bias[m] - int64_t{layer_.x_zero} * weight_sum(weight, features, m));
    }
  }

  std::string name_;
  GroupedConv layer_{};
  std::vector<int64_t> pads_;
  GroupedConvKernel kernel_;
};

}  // namespace

template <bool kWithCenter>
Kernel* NhwcQLinearConvOp<kWithCenter>::create(const KernelInfo* info) {
  return new ConvKernel(kWithCenter, info);
}

template <bool kWithCenter>
const char* NhwcQLinearConvOp<kWithCenter>::name() {
  return name_of(kWithCenter);
}

template <bool kWithCenter>
ElementType NhwcQLinearConvOp<kWithCenter>::input_type(size_t index) {
  switch (index) {
    case 1: case 4: case 5: case 9: case 11: case 13: return ElementType::kFloat;
    case 3: case 8: return ElementType::kInt8;
    case 7: case 10: return ElementType::kInt32;
    default: return ElementType::kUint8;
  }
}

template <bool kWithCenter>
Presence NhwcQLinearConvOp<kWithCenter>::presence(size_t index) {
  return index == 7 && !kWithCenter ? Presence::kOptional : Presence::kRequired;
}

template <bool kWithCenter>
void NhwcQLinearConvOp<kWithCenter>::infer(const Inference& node) {
  const Inference::Dims x = node.input(0), w = node.input(3);
  if (x.size() != 4 || w.size() != 4 || !w[0].known() || !w[2].known() || !w[3].known()) return;
  const Shape strides = node.integers("strides", {1, 1}), dilations = node.integers("dilations", {1, 1});
  const Shape pads = node.integers("pads", {0, 0, 0, 0});
  Inference::Dims y{x[0]};
  for (size_t i = 0; i < 2; ++i) {
    if (!x[1 + i].known() || strides[i] < 1) return;
    y.push_back({out_size(x[1 + i].size, pads[i] + pads[i + 2], w[2 + i].size, dilations[i], strides[i]), ""});
  }
  y.push_back(w[0]);
  node.set_output(y, output_type());
}

template struct NhwcQLinearConvOp<false>;
template struct NhwcQLinearConvOp<true>;

}  // namespace ptq
