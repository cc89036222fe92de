#include <algorithm>
#include <cstring>

#include "grouped_conv/grouped_conv.h"
#include "simd/simd.h"

#if PTQ_X86
#define PTQ_VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))

namespace ptq {
namespace {

constexpr int64_t kLanes = 16;  // int32 accumulators per register
constexpr int64_t kCacheDwords = 4096;  // 16 KiB
constexpr int64_t kBlock = 64;  // neighbouring outputs of one step; constants of channels go round for as many more

// sums -> bytes: multiply, round to even, add the zero point, clamp.
PTQ_VNNI inline __m128i requantized(const GroupedConv& layer, __m512i sum, __m512 multiplier) {
  const __m512 low = _mm512_set1_ps(static_cast<float>(layer.y_low - layer.y_zero));
  const __m512 high = _mm512_set1_ps(static_cast<float>(layer.y_high - layer.y_zero));
  const __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), multiplier);
  const __m512i rounded = _mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(scaled, low), high));
  return _mm512_cvtepi32_epi8(_mm512_add_epi32(rounded, _mm512_set1_epi32(layer.y_zero)));
}

inline __mmask16 lanes(int64_t count) {
  return static_cast<__mmask16>(count >= kLanes ? 0xFFFF : (1u << count) - 1u);
}

// Four rows of bytes -> dwords with one byte of each, in order. `to` has room for 64 more than `count`.
PTQ_VNNI void interleave(const uint8_t* const rows[4], int64_t count, uint8_t flip, uint32_t* to) {
  // Unpacking works within 128 bits: chunks of 4 bytes are first dealt to the four lanes, so that it comes out in order.
  const __m512i deal = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i flips = _mm512_set1_epi8(static_cast<char>(flip));
  for (int64_t i = 0; i < count; i += 64) {
    const __mmask64 mask = count - i >= 64 ? ~0ull : (1ull << (count - i)) - 1ull;
    __m512i part[4];
    for (int r = 0; r < 4; ++r) {
      part[r] = _mm512_xor_si512(_mm512_maskz_loadu_epi8(mask, rows[r] + i), flips);
      part[r] = _mm512_permutexvar_epi32(deal, part[r]);
    }
    const __m512i low01 = _mm512_unpacklo_epi8(part[0], part[1]), high01 = _mm512_unpackhi_epi8(part[0], part[1]);
    const __m512i low23 = _mm512_unpacklo_epi8(part[2], part[3]), high23 = _mm512_unpackhi_epi8(part[2], part[3]);
    _mm512_storeu_si512(to + i, _mm512_unpacklo_epi16(low01, low23));
    _mm512_storeu_si512(to + i + 16, _mm512_unpackhi_epi16(low01, low23));
    _mm512_storeu_si512(to + i + 32, _mm512_unpacklo_epi16(high01, high23));
    _mm512_storeu_si512(to + i + 48, _mm512_unpackhi_epi16(high01, high23));
  }
}

constexpr int64_t kMaxTaps = 64;

struct Tap {
  const uint32_t* input;   // at output 0
  const uint32_t* weight;  // at channel 0
};

// Four registers of sums -> 64 bytes in order, by saturating packs, which work within 128 bits.
PTQ_VNNI inline __m512i requantized_block(const GroupedConv& layer, const __m512i sum[4], const __m512 multiplier[4]) {
  const __m512 most = _mm512_set1_ps(65536.0f);  // beyond 2^31 conversion would give the lowest number
  const __m512i zero = _mm512_set1_epi16(static_cast<int16_t>(layer.y_zero));
  __m512i rounded[4];
  for (int b = 0; b < 4; ++b) {
    const __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(sum[b]), multiplier[b]);
    rounded[b] = _mm512_cvtps_epi32(_mm512_min_ps(scaled, most));
  }
  const __m512i low = _mm512_adds_epi16(_mm512_packs_epi32(rounded[0], rounded[1]), zero);
  const __m512i high = _mm512_adds_epi16(_mm512_packs_epi32(rounded[2], rounded[3]), zero);
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_permutexvar_epi32(order, _mm512_packus_epi16(low, high));
}

// One row of outputs, or a part of it.
struct Line {
  const Tap* taps;
  int num_taps;
  int64_t count;       // outputs
  int64_t input_step;  // dwords from one to the next
  int64_t output_step;
};

// Channels [channel, channel + 64) of `line.count` outputs.
template <int kTaps>
PTQ_VNNI inline void blocks_of_64(const GroupedConv& layer, const Line& line, int64_t at, int64_t channel, uint8_t* y) {
  __m512i bias[4], weight[kTaps > 0 ? kTaps : 1][4];
  __m512 multiplier[4];
  for (int b = 0; b < 4; ++b) {
    bias[b] = _mm512_loadu_si512(layer.packed_bias.data() + channel + b * kLanes);
    multiplier[b] = _mm512_loadu_ps(layer.packed_multiplier.data() + channel + b * kLanes);
    for (int t = 0; t < kTaps; ++t) weight[t][b] = _mm512_loadu_si512(line.taps[t].weight + channel + b * kLanes);
  }
  for (int64_t i = 0; i < line.count; ++i, at += line.input_step, y += line.output_step) {
    __m512i sum[4] = {bias[0], bias[1], bias[2], bias[3]};
    const int total = kTaps > 0 ? kTaps : line.num_taps;
    for (int t = 0; t < total; ++t) {
      const uint32_t* input = line.taps[t].input + at;
      for (int b = 0; b < 4; ++b) {
        const __m512i w = kTaps > 0 ? weight[t % (kTaps > 0 ? kTaps : 1)][b]
                                    : _mm512_loadu_si512(line.taps[t].weight + channel + b * kLanes);
        sum[b] = _mm512_dpbusd_epi32(sum[b], _mm512_loadu_si512(input + b * kLanes), w);
      }
    }
    _mm512_storeu_si512(y, requantized_block(layer, sum, multiplier));
  }
}

// Channels [channel, channel + width) of `line.count` outputs, width <= 16.
PTQ_VNNI inline void blocks_of_16(const GroupedConv& layer, const Line& line, int64_t at, int64_t channel,
                                  int64_t width, uint8_t* y) {
  const __m512i bias = _mm512_loadu_si512(layer.packed_bias.data() + channel);
  const __m512 multiplier = _mm512_loadu_ps(layer.packed_multiplier.data() + channel);
  const __mmask16 mask = lanes(width);
  for (int64_t i = 0; i < line.count; ++i, at += line.input_step, y += line.output_step) {
    __m512i sum = bias;
    for (int t = 0; t < line.num_taps; ++t) {
      const __m512i w = _mm512_loadu_si512(line.taps[t].weight + channel);
      sum = _mm512_dpbusd_epi32(sum, _mm512_loadu_si512(line.taps[t].input + at), w);
    }
    _mm_mask_storeu_epi8(y, mask, requantized(layer, sum, multiplier));
  }
}

template <int kTaps>
PTQ_VNNI void outputs(const GroupedConv& layer, const Line& pixels, int64_t channels, uint8_t* y) {
  if (pixels.input_step == channels && kBlock % channels == 0) {
    // Neighbouring outputs read neighbouring inputs: 64 of them at once, whatever their channels.
    const int64_t total = pixels.count * channels, whole = total / kBlock * kBlock;
    const Line flat{pixels.taps, pixels.num_taps, total / kBlock, kBlock, kBlock};
    blocks_of_64<kTaps>(layer, flat, 0, 0, y);
    const Line rest{pixels.taps, pixels.num_taps, 1, 0, 0};
    for (int64_t at = whole; at < total; at += kLanes) {
      blocks_of_16(layer, rest, at, at % channels, total - at, y + at);
    }
    return;
  }
  int64_t c = 0;
  for (; c + kBlock <= channels; c += kBlock) blocks_of_64<kTaps>(layer, pixels, c, c, y + c);
  for (; c < channels; c += kLanes) blocks_of_16(layer, pixels, c, c, channels - c, y + c);
}

}  // namespace

bool depthwise_conv_fits(const ConvShape& shape) {
  return shape.groups == shape.channels && shape.features == shape.channels &&
         (shape.kernel_height + 3) / 4 * shape.kernel_width <= kMaxTaps;
}

void pack_depthwise(GroupedConv& layer) {
  const ConvShape& s = layer.shape;
  const int64_t rows = (s.kernel_height + 3) / 4, width = s.channels + kBlock;
  layer.packed.assign(rows * s.kernel_width * width, 0);
  for (int64_t g = 0; g < rows; ++g) {
    for (int64_t kx = 0; kx < s.kernel_width; ++kx) {
      for (int64_t i = 0; i < width; ++i) {
        uint8_t bytes[4] = {0, 0, 0, 0};
        for (int64_t r = 0; r < 4 && 4 * g + r < s.kernel_height; ++r) {
          const int64_t from = (i % s.channels * s.kernel_height + 4 * g + r) * s.kernel_width + kx;
          bytes[r] = static_cast<uint8_t>(layer.weight[from]);
        }
        std::memcpy(&layer.packed[(g * s.kernel_width + kx) * width + i], bytes, 4);
      }
    }
  }
  layer.packed_bias.resize(width);
  layer.packed_multiplier.resize(width);
  for (int64_t i = 0; i < width; ++i) {
    layer.packed_bias[i] = layer.bias[i % s.channels];
    layer.packed_multiplier[i] = layer.multiplier[i % s.channels];
  }
}

PTQ_VNNI void depthwise_conv_avx512vnni(const GroupedConv& layer, const ConvShape& shape, const uint8_t* x, uint8_t* y,
                                        int64_t begin, int64_t end, std::vector<uint32_t>& scratch) {
  const int64_t channels = shape.channels, reach = (shape.kernel_width - 1) * shape.dilation_width + 1;
  const int64_t groups = (shape.kernel_height + 3) / 4;
  // A part of a row is interleaved at a time, so that it stays in the nearest cache.
  const int64_t columns = std::max<int64_t>(kCacheDwords / (channels * groups), reach + 7 * shape.stride_width);
  const int64_t part = (columns - reach) / shape.stride_width + 1;
  const int64_t line = ((part - 1) * shape.stride_width + reach) * channels + kBlock;  // interleave writes whole blocks
  const int64_t blank = (shape.width * channels + 3) / 4;
  scratch.resize(groups * line + blank);
  uint32_t* zeros = scratch.data() + groups * line;
  std::memset(zeros, layer.x_zero ^ layer.x_flip, blank * 4);
  const uint32_t pad = layer.x_zero * 0x01010101u;

  Tap taps[kMaxTaps];
  const int num_taps = static_cast<int>(groups * shape.kernel_width);
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t kx = 0; kx < shape.kernel_width; ++kx) {
      taps[g * shape.kernel_width + kx] = {scratch.data() + g * line + kx * shape.dilation_width * channels,
                                           layer.packed.data() + (g * shape.kernel_width + kx) * (channels + kBlock)};
    }
  }
  for (int64_t row = begin; row < end; ++row) {
    const int64_t image = row / shape.out_height, oy = row % shape.out_height;
    for (int64_t ox = 0; ox < shape.out_width; ox += part) {
      const int64_t count = std::min(part, shape.out_width - ox);
      const int64_t first = ox * shape.stride_width - shape.pad_left, total = (count - 1) * shape.stride_width + reach;
      const int64_t left = std::min(std::max<int64_t>(-first, 0), total);
      const int64_t inside = std::max<int64_t>(std::min(shape.width - first, total) - left, 0);
      for (int64_t g = 0; g < groups; ++g) {
        const uint8_t* rows[4];
        for (int64_t r = 0; r < 4; ++r) {
          const int64_t iy = oy * shape.stride_height - shape.pad_top + (4 * g + r) * shape.dilation_height;
          const bool valid = 4 * g + r < shape.kernel_height && iy >= 0 && iy < shape.height;
          rows[r] = valid ? x + ((image * shape.height + iy) * shape.width + first + left) * channels
                          : reinterpret_cast<const uint8_t*>(zeros);
        }
        uint32_t* to = scratch.data() + g * line;
        std::fill_n(to, left * channels, pad);
        interleave(rows, inside * channels, layer.x_flip, to + left * channels);
        std::fill(to + (left + inside) * channels, to + total * channels, pad);
      }
      const Line pixels{taps, num_taps, count, shape.stride_width * channels, channels};
      uint8_t* out = y + (row * shape.out_width + ox) * channels;
      if (num_taps == 3) {
        outputs<3>(layer, pixels, channels, out);
      } else {
        outputs<0>(layer, pixels, channels, out);
      }
    }
  }
}

bool narrow_conv_fits(const ConvShape& shape) {
  const int64_t per_group = shape.channels_per_group(), features = shape.features_per_group();
  if (per_group % 4 != 0) return false;
  for (int64_t m = 0; m < shape.features; m += kLanes) {
    const int64_t last = std::min(m + kLanes, shape.features) - 1;
    if ((last / features - m / features + 1) * per_group > 64) return false;
  }
  return true;
}

void pack_narrow(GroupedConv& layer) {
  const ConvShape& s = layer.shape;
  const int64_t chunks = (s.features + kLanes - 1) / kLanes, quads = s.channels_per_group() / 4;
  layer.packed.assign(chunks * s.taps() * quads * kLanes, 0);
  layer.packed_bias.assign(chunks * kLanes, 0);
  layer.packed_multiplier.assign(chunks * kLanes, 0.0f);
  for (int64_t m = 0; m < s.features; ++m) {
    layer.packed_bias[m] = layer.bias[m];
    layer.packed_multiplier[m] = layer.multiplier[m];
    for (int64_t t = 0; t < s.taps(); ++t) {
      for (int64_t q = 0; q < quads; ++q) {
        uint8_t bytes[4];
        for (int64_t c = 0; c < 4; ++c) {
          bytes[c] = static_cast<uint8_t>(layer.weight[(m * s.channels_per_group() + 4 * q + c) * s.taps() + t]);
        }
        std::memcpy(&layer.packed[((m / kLanes * s.taps() + t) * quads + q) * kLanes + m % kLanes], bytes, 4);
      }
    }
  }
}

namespace {

// One chunk of 16 features at `kPixels` neighbouring outputs.
template <int kPixels>
PTQ_VNNI inline void narrow_chunk(const GroupedConv& layer, const uint8_t* const* inputs, int64_t taps, int64_t quads,
                                  const uint32_t* weight, const __m512i* indices, int64_t first, __mmask64 window,
                                  const int32_t* bias, const float* multiplier, __mmask16 mask, int64_t features,
                                  uint8_t* y) {
  const __m512i flips = _mm512_set1_epi8(static_cast<char>(layer.x_flip));
  __m512i sum[kPixels];
  for (int p = 0; p < kPixels; ++p) sum[p] = _mm512_loadu_si512(bias);
  for (int64_t t = 0; t < taps; ++t) {
    __m512i part[kPixels];
    for (int p = 0; p < kPixels; ++p) {
      part[p] = _mm512_xor_si512(_mm512_maskz_loadu_epi8(window, inputs[p * taps + t] + first), flips);
    }
    for (int64_t q = 0; q < quads; ++q) {
      const __m512i w = _mm512_loadu_si512(weight + (t * quads + q) * kLanes);
      for (int p = 0; p < kPixels; ++p) {
        sum[p] = _mm512_dpbusd_epi32(sum[p], _mm512_permutexvar_epi32(indices[q], part[p]), w);
      }
    }
  }
  for (int p = 0; p < kPixels; ++p) {
    _mm_mask_storeu_epi8(y + p * features, mask, requantized(layer, sum[p], _mm512_loadu_ps(multiplier)));
  }
}

}  // namespace

PTQ_VNNI void narrow_conv_avx512vnni(const GroupedConv& layer, const ConvShape& shape, const uint8_t* x, uint8_t* y,
                                     int64_t begin, int64_t end, std::vector<uint32_t>& scratch) {
  const int64_t per_group = shape.channels_per_group(), per_features = shape.features_per_group();
  const int64_t quads = per_group / 4, taps = shape.taps(), features = shape.features;
  constexpr int64_t kPixels = 4;
  scratch.resize((shape.channels + 3) / 4 + 16);
  std::memset(scratch.data(), layer.x_zero ^ layer.x_flip, scratch.size() * 4);
  const uint8_t* blank = reinterpret_cast<const uint8_t*>(scratch.data());
  std::vector<const uint8_t*> inputs(kPixels * taps);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t image = row / shape.out_height, oy = row % shape.out_height;
    for (int64_t ox = 0; ox < shape.out_width; ox += kPixels) {
      const int64_t pixels = std::min(kPixels, shape.out_width - ox);
      for (int64_t p = 0; p < pixels; ++p) {
        for (int64_t t = 0; t < taps; ++t) {
          const int64_t ky = t / shape.kernel_width, kx = t % shape.kernel_width;
          const int64_t iy = oy * shape.stride_height - shape.pad_top + ky * shape.dilation_height;
          const int64_t ix = (ox + p) * shape.stride_width - shape.pad_left + kx * shape.dilation_width;
          const bool inside = iy >= 0 && iy < shape.height && ix >= 0 && ix < shape.width;
          inputs[p * taps + t] =
              inside ? x + ((image * shape.height + iy) * shape.width + ix) * shape.channels : blank;
        }
      }
      for (int64_t m = 0; m < features; m += kLanes) {
        const int64_t group = m / per_features, last = std::min(m + kLanes, features) - 1;
        const int64_t window = (last / per_features - group + 1) * per_group;
        const __mmask64 mask = window >= 64 ? ~0ull : (1ull << window) - 1ull;
        __m512i indices[16];
        for (int64_t q = 0; q < quads; ++q) {
          int32_t index[kLanes] = {};
          for (int64_t lane = 0; lane < kLanes && m + lane < features; ++lane) {
            index[lane] = static_cast<int32_t>(((m + lane) / per_features - group) * quads + q);
          }
          indices[q] = _mm512_loadu_si512(index);
        }
        const uint32_t* weight = layer.packed.data() + m * taps * quads;
        uint8_t* out = y + (row * shape.out_width + ox) * features + m;
        const int32_t* bias = layer.packed_bias.data() + m;
        const float* multiplier = layer.packed_multiplier.data() + m;
        if (pixels == kPixels) {
          narrow_chunk<kPixels>(layer, inputs.data(), taps, quads, weight, indices, group * per_group, mask, bias,
                                multiplier, lanes(features - m), features, out);
        } else {
          for (int64_t p = 0; p < pixels; ++p) {
            narrow_chunk<1>(layer, inputs.data() + p * taps, taps, quads, weight, indices, group * per_group, mask,
                            bias, multiplier, lanes(features - m), features, out + p * features);
          }
        }
      }
    }
  }
}

bool image_conv_fits(const ConvShape& shape) {
  return shape.groups == 1 && shape.channels <= 4 && shape.dilation_width == 1 && shape.kernel_width <= 16;
}

void pack_image(GroupedConv& layer) {
  const ConvShape& s = layer.shape;
  const int64_t chunks = (s.features + kLanes - 1) / kLanes, quads = (s.kernel_width * s.channels + 3) / 4;
  layer.packed.assign(chunks * s.kernel_height * quads * kLanes, 0);
  layer.packed_bias.assign(chunks * kLanes, 0);
  layer.packed_multiplier.assign(chunks * kLanes, 0.0f);
  for (int64_t m = 0; m < s.features; ++m) {
    layer.packed_bias[m] = layer.bias[m];
    layer.packed_multiplier[m] = layer.multiplier[m];
    for (int64_t ky = 0; ky < s.kernel_height; ++ky) {
      for (int64_t q = 0; q < quads; ++q) {
        uint8_t bytes[4] = {0, 0, 0, 0};
        for (int64_t i = 4 * q; i < std::min(4 * q + 4, s.kernel_width * s.channels); ++i) {
          const int64_t kx = i / s.channels, c = i % s.channels;
          const int64_t from = ((m * s.channels + c) * s.kernel_height + ky) * s.kernel_width + kx;
          bytes[i % 4] = static_cast<uint8_t>(layer.weight[from]);
        }
        std::memcpy(&layer.packed[((m / kLanes * s.kernel_height + ky) * quads + q) * kLanes + m % kLanes], bytes, 4);
      }
    }
  }
}

namespace {

// `kPixels` neighbouring outputs of one chunk of 16 features; a weight is read once for all of them.
template <int kPixels>
PTQ_VNNI inline void image_pixels(const GroupedConv& layer, const uint8_t* first, int64_t row_bytes, int64_t step,
                                  int64_t rows, int64_t quads, const uint32_t* weight, int64_t chunk, __mmask16 mask,
                                  uint8_t* y) {
  const int64_t features = layer.shape.features;
  __m512i sum[kPixels];
  for (int p = 0; p < kPixels; ++p) sum[p] = _mm512_loadu_si512(layer.packed_bias.data() + chunk * kLanes);
  for (int64_t ky = 0; ky < rows; ++ky) {
    for (int64_t q = 0; q < quads; ++q, weight += kLanes) {
      const __m512i w = _mm512_loadu_si512(weight);
      for (int p = 0; p < kPixels; ++p) {
        int32_t bytes;
        std::memcpy(&bytes, first + ky * row_bytes + p * step + 4 * q, 4);
        sum[p] = _mm512_dpbusd_epi32(sum[p], _mm512_set1_epi32(bytes), w);
      }
    }
  }
  const __m512 multiplier = _mm512_loadu_ps(layer.packed_multiplier.data() + chunk * kLanes);
  for (int p = 0; p < kPixels; ++p) _mm_mask_storeu_epi8(y + p * features, mask, requantized(layer, sum[p], multiplier));
}

}  // namespace

PTQ_VNNI void image_conv_avx512vnni(const GroupedConv& layer, const ConvShape& shape, const uint8_t* x, uint8_t* y,
                                    int64_t begin, int64_t end, std::vector<uint32_t>& scratch) {
  const int64_t channels = shape.channels, rows = shape.kernel_height, features = shape.features;
  const int64_t quads = (shape.kernel_width * channels + 3) / 4, step = shape.stride_width * channels;
  const int64_t columns = (shape.out_width - 1) * shape.stride_width + shape.kernel_width;
  const int64_t row_bytes = columns * channels + 4;  // the last quad may reach beyond the last column
  const int64_t left = std::min(shape.pad_left, columns);
  const int64_t inside = std::max<int64_t>(0, std::min(shape.width, columns - left));
  scratch.resize((rows * row_bytes + 3) / 4);
  uint8_t* padded = reinterpret_cast<uint8_t*>(scratch.data());
  std::memset(padded, layer.x_zero, scratch.size() * 4);
  constexpr int64_t kPixels = 8;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t image = row / shape.out_height, oy = row % shape.out_height;
    for (int64_t ky = 0; ky < rows; ++ky) {
      const int64_t iy = oy * shape.stride_height - shape.pad_top + ky * shape.dilation_height;
      uint8_t* to = padded + ky * row_bytes + left * channels;
      if (iy < 0 || iy >= shape.height) {
        std::memset(to, layer.x_zero, inside * channels);
        continue;
      }
      const uint8_t* from = x + (image * shape.height + iy) * shape.width * channels;
      for (int64_t i = 0; i < inside * channels; ++i) to[i] = from[i] ^ layer.x_flip;
    }
    for (int64_t chunk = 0; chunk * kLanes < features; ++chunk) {
      const uint32_t* weight = layer.packed.data() + chunk * rows * quads * kLanes;
      const __mmask16 mask = lanes(features - chunk * kLanes);
      uint8_t* out = y + row * shape.out_width * features + chunk * kLanes;
      int64_t ox = 0;
      for (; ox + kPixels <= shape.out_width; ox += kPixels) {
        image_pixels<kPixels>(layer, padded + ox * step, row_bytes, step, rows, quads, weight, chunk, mask,
                              out + ox * features);
      }
      for (; ox < shape.out_width; ++ox) {
        image_pixels<1>(layer, padded + ox * step, row_bytes, step, rows, quads, weight, chunk, mask,
                        out + ox * features);
      }
    }
  }
}

}  // namespace ptq
#endif
