// Quantized convolutions that onnxruntime runs slower than it could, or cannot express: channels last.
//
// y[n, oy, ox, m] = clamp(round((bias[m] + sum over taps, channels of its group of x * w[m]) * multiplier[m]
//                               + (center_bias[m] + sum over channels of x at the centre * center[m])
//                                 * center_multiplier[m]) + y_zero)
//
// The second product is there for weights in two parts, fine everywhere and coarse at the centre of their kernel.
// Layouts: x [batch, height, width, channels] bytes; y [batch, out_height, out_width, features] bytes. Sums are int32:
// 255 * 128 * taps * channels per group must stay below 2^31, which the operator checks.
#pragma once

#include <cstdint>
#include <vector>

namespace ptq {

struct ConvShape {
  int64_t batch, height, width, channels;
  int64_t out_height, out_width, features;
  int64_t groups;
  int64_t kernel_height, kernel_width;
  int64_t stride_height, stride_width;
  int64_t dilation_height, dilation_width;
  int64_t pad_top, pad_left;

  int64_t channels_per_group() const { return channels / groups; }
  int64_t features_per_group() const { return features / groups; }
  int64_t taps() const { return kernel_height * kernel_width; }
  int64_t center() const { return kernel_height / 2 * kernel_width + kernel_width / 2; }
};

// A layer's constants; batch, height and width of `shape` are those of the next run.
struct GroupedConv {
  ConvShape shape;
  std::vector<int8_t> weight;     // [features, channels_per_group, kernel_height, kernel_width]
  std::vector<int32_t> bias;      // [features], the input's zero point taken out: bias - x_zero * sum(w)
  std::vector<float> multiplier;  // [features], x_scale * w_scale / y_scale
  std::vector<int8_t> center;     // [features, channels_per_group], or empty, as is what belongs to it
  std::vector<int32_t> center_bias;
  std::vector<float> center_multiplier;
  uint8_t x_zero;
  int32_t y_zero;
  // Packed for the kernel that runs it: [ceil(features / 16)] strips of 16, or channels that go round.
  std::vector<uint32_t> packed, packed_center;
  std::vector<float> packed_multiplier, packed_center_multiplier;
  std::vector<int32_t> packed_bias, packed_center_bias;
};

// Sum of the weights of feature m.
int64_t weight_sum(const std::vector<int8_t>& weight, int64_t features, int64_t m);

// Computes output rows [begin, end) of batch * out_height. `scratch` keeps its capacity between calls.
using GroupedConvKernel = void (*)(const GroupedConv& layer, const ConvShape& shape, const uint8_t* x, uint8_t* y,
                                   int64_t begin, int64_t end, std::vector<uint32_t>& scratch);

// The specification.
void grouped_conv_ref(const GroupedConv& layer, const ConvShape& shape, const uint8_t* x, uint8_t* y, int64_t begin,
                      int64_t end, std::vector<uint32_t>& scratch);

constexpr int64_t kConvStrip = 16;   // features that lie side by side
constexpr int64_t kMostTaps = 64;    // columns of four taps in a depthwise kernel
constexpr int64_t kRoundTrip = 64;   // channels that packed constants go on for

// How a layer is laid out. `lanes`: features that a vector holds.
enum class ConvKind { kReference, kDepthwise, kImage, kNarrow, kDense };
ConvKind conv_kind(const GroupedConv& layer, int64_t lanes);
void pack_conv(GroupedConv& layer, ConvKind kind, bool signed_bytes);

struct ConvKernels {
  const char* name;
  int64_t lanes;
  bool signed_bytes;
  GroupedConvKernel depthwise;  // one channel and one feature per group
  GroupedConvKernel image;      // one group of at most 4 channels
  GroupedConvKernel narrow;     // groups of a few channels, multiples of 4
  GroupedConvKernel dense;      // one group of channels, a multiple of 4
};

extern const ConvKernels kConvAvx512Vnni, kConvAvxVnni, kConvAvx2, kConvNeon;

// Packs the layer for the fastest kernel that this processor runs and that fits its shape.
GroupedConvKernel choose_grouped_conv(GroupedConv& layer);

}  // namespace ptq
