// Quantized convolutions with few channels per group, channels last: what onnxruntime runs slower than it could.
//
// y[n, oy, ox, m] = clamp(round((bias[m] + sum over taps, channels of its group of x * w[m]) * multiplier[m]) + y_zero)
//
// Layouts: x [batch, height, width, channels] bytes; y [batch, out_height, out_width, features] bytes. Accumulators are
// int32: 255 * 128 * taps * channels per group must stay below 2^31, which the operator checks.
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
};

// A layer's constants; batch, height and width of `shape` are those of the next run.
struct GroupedConv {
  ConvShape shape;
  std::vector<int8_t> weight;     // [features, channels_per_group, kernel_height, kernel_width]
  std::vector<int32_t> bias;      // [features], the input's zero point taken out: bias - x_zero * sum(w)
  std::vector<float> multiplier;  // [features], x_scale * w_scale / y_scale
  uint8_t x_zero;                 // of unsigned codes; signed ones are flipped on the way in
  uint8_t x_flip;                 // 0x80 if x is int8, else 0
  int32_t y_zero, y_low, y_high;
  // Packed by the variant that runs it, see there.
  std::vector<uint32_t> packed;
  std::vector<float> packed_multiplier;
  std::vector<int32_t> packed_bias;
};

// Computes output rows [begin, end) of batch * out_height. `scratch` keeps its capacity between calls.
using GroupedConvKernel = void (*)(const GroupedConv& layer, const ConvShape& shape, const uint8_t* x, uint8_t* y,
                                   int64_t begin, int64_t end, std::vector<uint32_t>& scratch);

// The specification.
void grouped_conv_ref(const GroupedConv& layer, const ConvShape& shape, const uint8_t* x, uint8_t* y, int64_t begin,
                      int64_t end, std::vector<uint32_t>& scratch);

// One channel and one feature per group, kernels of up to 64 columns of 4 taps. Packed: dwords of four kernel rows, [ceil(kernel_height / 4), kernel_width, channels + 64],
// the channels going round.
bool depthwise_conv_fits(const ConvShape& shape);
void pack_depthwise(GroupedConv& layer);
void depthwise_conv_avx512vnni(const GroupedConv& layer, const ConvShape& shape, const uint8_t* x, uint8_t* y,
                               int64_t begin, int64_t end, std::vector<uint32_t>& scratch);

// Channels per group a multiple of 4, and 16 neighbouring features reading at most 64 channels.
// Packed: dwords of four channels, [ceil(features / 16), taps, channels_per_group / 4, 16].
bool narrow_conv_fits(const ConvShape& shape);
void pack_narrow(GroupedConv& layer);
void narrow_conv_avx512vnni(const GroupedConv& layer, const ConvShape& shape, const uint8_t* x, uint8_t* y,
                            int64_t begin, int64_t end, std::vector<uint32_t>& scratch);

// One group of at most 4 channels (images), neighbouring columns not dilated: a kernel row's bytes are neighbours.
// Packed: dwords of four of them, [ceil(features / 16), kernel_height, ceil(kernel_width * channels / 4), 16].
bool image_conv_fits(const ConvShape& shape);
void pack_image(GroupedConv& layer);
void image_conv_avx512vnni(const GroupedConv& layer, const ConvShape& shape, const uint8_t* x, uint8_t* y,
                           int64_t begin, int64_t end, std::vector<uint32_t>& scratch);

// Packs the layer for the fastest variant that this processor runs and that fits its shape.
GroupedConvKernel choose_grouped_conv(GroupedConv& layer);

}  // namespace ptq
