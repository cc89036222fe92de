#include "matmul_nbits_ops.h"

#include <limits>
#include <numeric>

#include "matmul_nbits/matmul_nbits.h"
#include "node.h"

namespace ptq {
namespace {

constexpr int64_t kRowsAtOnce = 256;  // rows whose codes stay in the cache while the weight passes by
constexpr float kMost = std::numeric_limits<float>::max();

const char* name_of(Product kind) {
  if (kind == Product::kDynamic) return "DynamicMatMulNBits";
  return kind == Product::kToFloat ? "QLinearMatMulNBitsToFloat" : "QLinearMatMulNBits";
}

// Bytes of the session's arena, given back at the end.
class Scratch {
 public:
  Scratch(const Call& call, int64_t size)
      : allocator_(call.allocator()), data_(allocator_->Alloc(allocator_.get(), static_cast<size_t>(size))) {}
  ~Scratch() { allocator_->Free(allocator_.get(), data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  char* data() const { return static_cast<char*>(data_); }

 private:
  Owned<Allocator> allocator_;
  void* data_;
};

// One run, cut into tasks.
struct Run {
  const NBitsKernels* kernels;
  NBitsWeight weight;
  CodeRows codes;
  const void* x;
  bool floats;
  float x_scale;
  void* y;
  size_t y_bytes;  // of one output
  const ByteGrid* grid;
  int64_t rows, row_tasks, strip_tasks;

  CodeRows from(int64_t row) const {
    return {codes.codes + row * weight.padded(), codes.scale + row * weight.blocks(),
            codes.total + row * weight.blocks()};
  }
};

void round_rows(void* data, size_t index) {
  const Run& run = *static_cast<const Run*>(data);
  const int64_t i = static_cast<int64_t>(index);
  const int64_t row = run.rows * i / run.row_tasks, count = run.rows * (i + 1) / run.row_tasks - row;
  const int64_t at = row * run.weight.inputs;
  if (run.floats) {
    run.kernels->quantize(run.weight, static_cast<const float*>(run.x) + at, count, run.from(row));
  } else {
    run.kernels->shift(run.weight, static_cast<const uint8_t*>(run.x) + at, count, run.x_scale, run.from(row));
  }
}

void multiply_part(void* data, size_t index) {
  const Run& run = *static_cast<const Run*>(data);
  const int64_t i = static_cast<int64_t>(index) / run.strip_tasks, j = static_cast<int64_t>(index) % run.strip_tasks;
  const int64_t row = run.rows * i / run.row_tasks, count = run.rows * (i + 1) / run.row_tasks - row;
  // A task begins where a whole tile does: at a multiple of four strips.
  const int64_t stretches = (run.weight.strips() + 3) / 4;
  const int64_t begin = 4 * (stretches * j / run.strip_tasks);
  const int64_t end = std::min(4 * (stretches * (j + 1) / run.strip_tasks), run.weight.strips());
  char* y = static_cast<char*>(run.y) + row * run.weight.features * run.y_bytes;
  run.kernels->multiply(run.weight, run.from(row), count, begin, end, y, run.grid);
}

class ProductKernel : public Kernel {
 public:
  ProductKernel(Product kind, const KernelInfo* info) : kind_(kind), kernels_(&choose_nbits()) {
    const NodeReader read(name_of(kind), info);
    name_ = read.name();
    const auto size = [&](const char* key) {
      const int64_t value = read.integer(key, 0);
      if (value < 1 || value > (1 << 24)) read.refuse(std::string(key) + " is " + std::to_string(value));
      return value;
    };
    weight_ = {};
    weight_.features = size("N");
    weight_.inputs = size("K");
    weight_.bits = size("bits");
    if (weight_.bits != 2 && weight_.bits != 4 && weight_.bits != 8) {
      read.refuse("bits is " + std::to_string(weight_.bits) + "; expected 2, 4 or 8");
    }
    if (weight_.inputs > kMostInputs) read.refuse("its sums would not fit into 32 bits");
    weight_.block = read.integer("block_size", 0);
    if (weight_.block < 0 || weight_.block % 16 != 0) {
      read.refuse("block_size is " + std::to_string(weight_.block) + "; expected a multiple of 16, or 0");
    }
    if (weight_.block == 0 || weight_.block >= weight_.inputs) weight_.block = weight_.padded();
    weight_.low = read.number("min", -kMost);
    weight_.high = read.number("max", kMost);
    if (!(weight_.low <= weight_.high)) read.refuse("min and max are in the wrong order");

    first_ = kind == Product::kDynamic ? 1 : 3;
    read_weight(read);
    read_bias(read);
    if (kind != Product::kDynamic) read_grids(read);
  }

  void compute(const Call& call) const override {
    const Tensor x = call.input(0);
    Shape shape = x.shape();
    if (shape.empty() || shape.back() != weight_.inputs) {
      throw Error(ErrorCode::kInvalidArgument, name_ + ": x is not [.., " + std::to_string(weight_.inputs) + "]");
    }
    shape.back() = weight_.features;
    const Tensor y = call.output(shape);
    Run run{};
    run.rows = std::accumulate(shape.begin(), shape.end() - 1, int64_t{1}, std::multiplies<int64_t>());
    if (run.rows == 0) return;
    run.kernels = kernels_;
    run.weight = used();
    if (looked_up_.empty()) run.weight.codes = call.input(first_).data<uint8_t>();
    run.weight.scale = call.input(first_ + 1).data<float>();
    run.floats = kind_ == Product::kDynamic;
    run.x = run.floats ? static_cast<const void*>(x.data<float>()) : x.data<uint8_t>();
    run.x_scale = x_scale_;
    run.grid = kind_ == Product::kToBytes ? &grid_ : nullptr;
    run.y = run.grid ? static_cast<void*>(y.data<uint8_t>()) : y.data<float>();
    run.y_bytes = run.grid ? 1 : 4;

    const int64_t blocks = run.rows * weight_.blocks(), bytes = run.rows * weight_.padded();
    const Scratch scratch(call, bytes + 8 * blocks);
    run.codes.scale = reinterpret_cast<float*>(scratch.data());
    run.codes.total = reinterpret_cast<int32_t*>(scratch.data() + 4 * blocks);
    run.codes.codes = reinterpret_cast<int8_t*>(scratch.data() + 8 * blocks);

    const auto each = [&](void (*task)(void*, size_t), int64_t count, int64_t work) {
      if (work < kSmallWork || count == 1) {
        for (int64_t i = 0; i < count; ++i) task(&run, static_cast<size_t>(i));
      } else {
        call.in_parallel(task, count, &run);
      }
    };
    run.row_tasks = std::min(run.rows, kMaxTasks);
    each(round_rows, run.row_tasks, bytes);
    run.row_tasks = (run.rows + kRowsAtOnce - 1) / kRowsAtOnce;
    run.strip_tasks = std::max<int64_t>(1, std::min(kMaxTasks / run.row_tasks, (weight_.strips() + 3) / 4));
    each(multiply_part, run.row_tasks * run.strip_tasks, bytes * weight_.features);
  }

 private:
  void read_weight(const NodeReader& read) {
    const std::vector<int64_t> expected{weight_.strips(), weight_.groups(), kStrip, 4};
    const Tensor codes = read.constant_value(first_, "w");
    if (codes.shape() != expected) read.refuse("w is not packed for its N, K and bits");
    const Tensor scale = read.constant_value(first_ + 1, "w_scale");
    if (scale.shape() !=
        std::vector<int64_t>{weight_.strips(), weight_.blocks(), kStrip}) {
      read.refuse("w_scale is not [ceil(N / 16), blocks, 16]");
    }
    weight_.codes = codes.data<uint8_t>();
    weight_.scale = scale.data<float>();
    for (int64_t n = 0; n < weight_.features; ++n) {
      for (int64_t b = 0; b < weight_.blocks(); ++b) {
        if (!is_usable_scale(weight_.scale[(n / kStrip * weight_.blocks() + b) * kStrip + n % kStrip])) {
          read.refuse("a scale of w is not positive and finite");
        }
      }
    }
    const std::vector<int8_t> values = read.constant<int8_t>(first_ + 2, "table");
    const size_t count = size_t{1} << weight_.bits;
    if (values.size() != count) {
      read.refuse("table has " + std::to_string(values.size()) + " values; expected " + std::to_string(count));
    }
    bool even = true;
    for (size_t i = 0; i < count; ++i) even = even && values[i] == static_cast<int>(i) - static_cast<int>(count / 2);
    if (even) return;
    if (weight_.bits != 4) return look_up(values);
    for (size_t i = 0; i < count; ++i) table_[i] = static_cast<uint8_t>(values[i] + 128);
    has_table_ = true;
  }

  // Tables of other words than 4 bits have no kernel: their weights become 8 bits, here, once.
  void look_up(const std::vector<int8_t>& values) {
    NBitsWeight wide = weight_;
    wide.bits = 8;
    looked_up_.assign(wide.strips() * wide.groups() * kStrip * 4, 128);
    for (int64_t n = 0; n < weight_.features; ++n) {
      for (int64_t k = 0; k < weight_.inputs; ++k) {
        const int64_t at = ((n / kStrip * wide.groups() + k / 4) * kStrip + n % kStrip) * 4 + k % 4;
        looked_up_[at] = static_cast<uint8_t>(values[code_at(weight_, n, k)] + 128);
      }
    }
    weight_.bits = 8;
    weight_.codes = looked_up_.data();
  }

  void read_bias(const NodeReader& read) {
    bias_ = read.constant<float>(first_ + 3, "bias");
    if (bias_.size() != static_cast<size_t>(weight_.features)) read.refuse("bias has not one element per feature");
    if (!std::all_of(bias_.begin(), bias_.end(), [](float b) { return std::isfinite(b); })) {
      read.refuse("bias is not finite");
    }
    bias_.resize(weight_.strips() * kStrip, 0.0f);
  }

  void read_grids(const NodeReader& read) {
    x_scale_ = read.scalar<float>(1, "x_scale");
    if (!is_usable_scale(x_scale_)) read.refuse("x_scale is not positive and finite");
    const int32_t zero = static_cast<int32_t>(read.scalar<uint8_t>(2, "x_zero_point")) - 128;
    if (kind_ == Product::kToBytes) {
      const float y_scale = read.scalar<float>(first_ + 4, "y_scale");
      grid_ = {1.0f / y_scale, static_cast<int32_t>(read.scalar<uint8_t>(first_ + 5, "y_zero_point"))};
      if (!is_usable_scale(y_scale) || !is_usable_scale(grid_.inverse)) {
        read.refuse("y_scale is not positive and finite");
      }
    }
    // The input's zero point: with one scale per feature exactly, from the sum of its codes; else in the bias.
    const bool exact = weight_.blocks() == 1;
    const std::vector<float> ones(exact ? weight_.strips() * kStrip : 0, 1.0f);
    NBitsWeight weight = used();
    weight.bias = nullptr;
    weight.low = -kMost;
    weight.high = kMost;
    if (exact) weight.scale = ones.data();
    std::vector<int8_t> codes(weight_.padded(), 0);
    std::fill_n(codes.begin(), weight_.inputs, int8_t{1});
    std::vector<float> scale(weight_.blocks(), exact ? 1.0f : x_scale_), sums(weight_.features);
    std::vector<int32_t> totals(weight_.blocks(), static_cast<int32_t>(weight_.block));
    totals.back() = static_cast<int32_t>(weight_.inputs - (weight_.blocks() - 1) * weight_.block);
    kernels_->multiply(weight, {codes.data(), scale.data(), totals.data()}, 1, 0, weight_.strips(), sums.data(),
                       nullptr);
    if (exact) column_.assign(weight_.strips() * kStrip, 0);
    for (int64_t n = 0; n < weight_.features; ++n) {
      if (exact) {
        column_[n] = -zero * static_cast<int32_t>(sums[n]);
      } else {
        bias_[n] -= static_cast<float>(zero) * sums[n];
      }
    }
  }

  // The weight with everything that is this kernel's own.
  NBitsWeight used() const {
    NBitsWeight weight = weight_;
    weight.bias = bias_.data();
    weight.column = column_.empty() ? nullptr : column_.data();
    weight.table = has_table_ ? table_ : nullptr;
    return weight;
  }

  std::string name_;
  Product kind_;
  const NBitsKernels* kernels_;
  NBitsWeight weight_;
  size_t first_;  // index of w among the inputs
  std::vector<float> bias_;
  std::vector<int32_t> column_;
  std::vector<uint8_t> looked_up_;
  bool has_table_ = false;
  uint8_t table_[16] = {};
  float x_scale_ = 1.0f;
  ByteGrid grid_{};
};

}  // namespace

template <Product kKind>
Kernel* MatMulNBitsOp<kKind>::create(const KernelInfo* info) {
  return new ProductKernel(kKind, info);
}

template <Product kKind>
const char* MatMulNBitsOp<kKind>::name() {
  return name_of(kKind);
}

template <Product kKind>
size_t MatMulNBitsOp<kKind>::num_inputs() {
  if (kKind == Product::kDynamic) return 5;
  return kKind == Product::kToFloat ? 7 : 9;
}

template <Product kKind>
ElementType MatMulNBitsOp<kKind>::input_type(size_t index) {
  constexpr auto kFloat = ElementType::kFloat, kByte = ElementType::kUint8, kSigned = ElementType::kInt8;
  constexpr ElementType kDynamic[] = {kFloat, kByte, kFloat, kSigned, kFloat};
  constexpr ElementType kStatic[] = {kByte, kFloat, kByte, kByte, kFloat, kSigned, kFloat, kFloat, kByte};
  return kKind == Product::kDynamic ? kDynamic[index] : kStatic[index];
}

template <Product kKind>
ElementType MatMulNBitsOp<kKind>::output_type() {
  return kKind == Product::kToBytes ? ElementType::kUint8 : ElementType::kFloat;
}

template <Product kKind>
void MatMulNBitsOp<kKind>::infer(const Inference& node) {
  Inference::Dims y = node.input(0);
  const int64_t features = node.integer("N", -1);
  if (y.empty() || features < 0) return;
  y.back() = {features, ""};
  node.set_output(y, output_type());
}

template struct MatMulNBitsOp<Product::kDynamic>;
template struct MatMulNBitsOp<Product::kToFloat>;
template struct MatMulNBitsOp<Product::kToBytes>;

}  // namespace ptq
