#include <cmath>

#include "grouped_conv/grouped_conv.h"

namespace ptq {

void grouped_conv_ref(const GroupedConv& layer, const ConvShape& shape, const uint8_t* x, uint8_t* y, int64_t begin,
                      int64_t end, std::vector<uint32_t>& /*scratch*/) {
  const int64_t per_group = shape.channels_per_group();
  for (int64_t row = begin; row < end; ++row) {
    const int64_t image = row / shape.out_height, oy = row % shape.out_height;
    for (int64_t ox = 0; ox < shape.out_width; ++ox) {
      for (int64_t m = 0; m < shape.features; ++m) {
        const int64_t first = m / shape.features_per_group() * per_group;
        uint32_t sum = 0, center = 0;  // they go round like the vector units' when a bias is absurd
        for (int64_t t = 0; t < shape.taps(); ++t) {
          const int64_t iy =
              oy * shape.stride_height - shape.pad_top + t / shape.kernel_width * shape.dilation_height;
          const int64_t ix =
              ox * shape.stride_width - shape.pad_left + t % shape.kernel_width * shape.dilation_width;
          const bool inside = iy >= 0 && iy < shape.height && ix >= 0 && ix < shape.width;
          for (int64_t c = 0; c < per_group; ++c) {
            const int64_t at = ((image * shape.height + iy) * shape.width + ix) * shape.channels + first + c;
            const int32_t code = inside ? x[at] : layer.x_zero;
            sum += static_cast<uint32_t>(code * layer.weight[(m * per_group + c) * shape.taps() + t]);
            if (!layer.center.empty() && t == shape.center()) {
              center += static_cast<uint32_t>(code * layer.center[m * per_group + c]);
            }
          }
        }
        float scaled =
            static_cast<float>(static_cast<int32_t>(static_cast<uint32_t>(layer.bias[m]) + sum)) * layer.multiplier[m];
        if (!layer.center.empty()) {
          const int32_t coarse = static_cast<int32_t>(static_cast<uint32_t>(layer.center_bias[m]) + center);
          scaled = scaled + static_cast<float>(coarse) * layer.center_multiplier[m];
        }
        const float low = static_cast<float>(-layer.y_zero), high = static_cast<float>(255 - layer.y_zero);
        const float rounded = std::nearbyintf(scaled < low ? low : scaled > high ? high : scaled);
        y[(row * shape.out_width + ox) * shape.features + m] =
            static_cast<uint8_t>(static_cast<int32_t>(rounded) + layer.y_zero);
      }
    }
  }
}

}  // namespace ptq
