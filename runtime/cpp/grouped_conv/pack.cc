#include <algorithm>
#include <cstring>
#include <numeric>

#include "grouped_conv/grouped_conv.h"

namespace ptq {
namespace {

uint32_t dword(const int8_t (&bytes)[4]) {
  uint32_t value;
  std::memcpy(&value, bytes, 4);
  return value;
}

// Four kernel rows per dword, [ceil(kernel_height / 4), kernel_width, channels + 64], the channels going round.
void pack_depthwise(GroupedConv& layer) {
  const ConvShape& s = layer.shape;
  const int64_t rows = (s.kernel_height + 3) / 4, width = s.channels + kRoundTrip;
  layer.packed.assign(rows * s.kernel_width * width, 0);
  for (int64_t g = 0; g < rows; ++g) {
    for (int64_t kx = 0; kx < s.kernel_width; ++kx) {
      for (int64_t i = 0; i < width; ++i) {
        int8_t bytes[4] = {0, 0, 0, 0};
        for (int64_t r = 0; r < 4 && 4 * g + r < s.kernel_height; ++r) {
          bytes[r] = layer.weight[(i % s.channels * s.kernel_height + 4 * g + r) * s.kernel_width + kx];
        }
        layer.packed[(g * s.kernel_width + kx) * width + i] = dword(bytes);
      }
    }
  }
}

// Four neighbouring bytes of a kernel row per dword, [strips, kernel_height, ceil(kernel_width * channels / 4), 16].
void pack_image(GroupedConv& layer) {
  const ConvShape& s = layer.shape;
  const int64_t strips = (s.features + kConvStrip - 1) / kConvStrip, row = s.kernel_width * s.channels;
  const int64_t quads = (row + 3) / 4;
  layer.packed.assign(strips * s.kernel_height * quads * kConvStrip, 0);
  for (int64_t m = 0; m < s.features; ++m) {
    for (int64_t ky = 0; ky < s.kernel_height; ++ky) {
      for (int64_t q = 0; q < quads; ++q) {
        int8_t bytes[4] = {0, 0, 0, 0};
        for (int64_t i = 4 * q; i < std::min(4 * q + 4, row); ++i) {
          bytes[i % 4] =
              layer.weight[((m * s.channels + i % s.channels) * s.kernel_height + ky) * s.kernel_width + i / s.channels];
        }
        const int64_t at = (m / kConvStrip * s.kernel_height + ky) * quads + q;
        layer.packed[at * kConvStrip + m % kConvStrip] = dword(bytes);
      }
    }
  }
}

// Four channels per dword, [strips, taps, channels_per_group / 4, 16]. `weight` is [features, channels_per_group, taps].
std::vector<uint32_t> by_channel(const ConvShape& s, const std::vector<int8_t>& weight, int64_t taps) {
  const int64_t strips = (s.features + kConvStrip - 1) / kConvStrip, quads = s.channels_per_group() / 4;
  std::vector<uint32_t> packed(strips * taps * quads * kConvStrip, 0);
  for (int64_t m = 0; m < s.features; ++m) {
    for (int64_t t = 0; t < taps; ++t) {
      for (int64_t q = 0; q < quads; ++q) {
        int8_t bytes[4];
        for (int64_t c = 0; c < 4; ++c) bytes[c] = weight[(m * s.channels_per_group() + 4 * q + c) * taps + t];
        packed[((m / kConvStrip * taps + t) * quads + q) * kConvStrip + m % kConvStrip] = dword(bytes);
      }
    }
  }
  return packed;
}

bool is_narrow(const ConvShape& s, int64_t lanes) {
  const int64_t per_group = s.channels_per_group(), features = s.features_per_group();
  if (s.groups == 1 || per_group % 4 != 0) return false;
  for (int64_t m = 0; m < s.features; m += lanes) {  // a vector of features reads at most a vector of channels
    const int64_t last = std::min(m + lanes, s.features) - 1;
    if ((last / features - m / features + 1) * per_group > 4 * lanes) return false;
  }
  return true;
}

}  // namespace

int64_t weight_sum(const std::vector<int8_t>& weight, int64_t features, int64_t m) {
  const int64_t size = static_cast<int64_t>(weight.size()) / features;
  return std::accumulate(weight.begin() + m * size, weight.begin() + (m + 1) * size, int64_t{0});
}

ConvKind conv_kind(const GroupedConv& layer, int64_t lanes) {
  const ConvShape& s = layer.shape;
  if (layer.center.empty()) {
    if (s.groups == s.channels && s.features == s.channels && (s.kernel_height + 3) / 4 * s.kernel_width <= kMostTaps) {
      return ConvKind::kDepthwise;
    }
    if (s.groups == 1 && s.channels <= 4 && s.dilation_width == 1 && s.kernel_width <= 16) return ConvKind::kImage;
    if (is_narrow(s, lanes)) return ConvKind::kNarrow;
  }
  return s.groups == 1 && s.channels % 4 == 0 ? ConvKind::kDense : ConvKind::kReference;
}

void pack_conv(GroupedConv& layer, ConvKind kind, bool signed_bytes) {
  const ConvShape& s = layer.shape;
  const bool round_trip = kind == ConvKind::kDepthwise;
  const int64_t padded = (s.features + kConvStrip - 1) / kConvStrip * kConvStrip;
  const int64_t width = round_trip ? s.channels + kRoundTrip : padded;
  const auto lay_out = [&](const std::vector<int8_t>& weight, const std::vector<int32_t>& bias,
                           const std::vector<float>& multiplier, std::vector<int32_t>& to_bias,
                           std::vector<float>& to_multiplier) {
    to_bias.assign(width, 0);
    to_multiplier.assign(width, 0.0f);
    for (int64_t i = 0; i < width; ++i) {
      const int64_t m = round_trip ? i % s.channels : i;
      if (m >= s.features) continue;
      // A unit that wants its bytes signed sees codes less 128.
      const int64_t offset = signed_bytes ? 128 * weight_sum(weight, s.features, m) : 0;
      to_bias[i] = static_cast<int32_t>(static_cast<uint32_t>(bias[m]) + static_cast<uint32_t>(offset));
      to_multiplier[i] = multiplier[m];
    }
  };
  lay_out(layer.weight, layer.bias, layer.multiplier, layer.packed_bias, layer.packed_multiplier);
  if (kind == ConvKind::kDepthwise) return pack_depthwise(layer);
  if (kind == ConvKind::kImage) return pack_image(layer);
  layer.packed = by_channel(s, layer.weight, s.taps());
  if (layer.center.empty()) return;
  layer.packed_center = by_channel(s, layer.center, 1);
  lay_out(layer.center, layer.center_bias, layer.center_multiplier, layer.packed_center_bias,
          layer.packed_center_multiplier);
}

}  // namespace ptq
