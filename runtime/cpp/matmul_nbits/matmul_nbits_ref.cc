#include <algorithm>
#include <cmath>

#include "matmul_nbits/matmul_nbits.h"

// The specification.
namespace ptq {
namespace {

void quantize(const NBitsWeight& w, const float* x, int64_t rows, const CodeRows& to) {
  for (int64_t m = 0; m < rows; ++m) {
    int8_t* codes = to.codes + m * w.padded();
    std::fill(codes + w.inputs, codes + w.padded(), int8_t{0});
    for (int64_t b = 0; b < w.blocks(); ++b) {
      const int64_t begin = b * w.block, end = std::min(begin + w.block, w.inputs);
      float largest = 0.0f;
      bool finite = true;
      for (int64_t k = begin; k < end; ++k) {
        largest = std::max(largest, std::fabs(x[m * w.inputs + k]));
        finite = finite && std::isfinite(x[m * w.inputs + k]);
      }
      const bool usable = finite && largest >= 1e-30f;
      const float inverse = usable ? 127.0f / largest : 0.0f;
      int32_t total = 0;
      for (int64_t k = begin; k < end; ++k) {
        codes[k] = usable ? static_cast<int8_t>(std::nearbyintf(x[m * w.inputs + k] * inverse)) : int8_t{0};
        total += codes[k];
      }
      to.scale[m * w.blocks() + b] = finite ? largest / 127.0f : NAN;
      to.total[m * w.blocks() + b] = total;
    }
  }
}

void shift(const NBitsWeight& w, const uint8_t* x, int64_t rows, float scale, const CodeRows& to) {
  for (int64_t m = 0; m < rows; ++m) {
    int8_t* codes = to.codes + m * w.padded();
    std::fill(codes + w.inputs, codes + w.padded(), int8_t{0});
    for (int64_t b = 0; b < w.blocks(); ++b) {
      int32_t total = 0;
      for (int64_t k = b * w.block; k < std::min((b + 1) * w.block, w.inputs); ++k) {
        codes[k] = static_cast<int8_t>(x[m * w.inputs + k] - 128);
        total += codes[k];
      }
      to.scale[m * w.blocks() + b] = scale;
      to.total[m * w.blocks() + b] = total;
    }
  }
}

void multiply(const NBitsWeight& w, const CodeRows& x, int64_t rows, int64_t begin, int64_t end, void* y,
              const ByteGrid* grid) {
  for (int64_t m = 0; m < rows; ++m) {
    for (int64_t n = begin * kStrip; n < std::min(end * kStrip, w.features); ++n) {
      float sum = 0.0f;
      for (int64_t b = 0; b < w.blocks(); ++b) {
        uint32_t products = w.column ? static_cast<uint32_t>(w.column[n]) : 0;
        for (int64_t k = b * w.block; k < std::min((b + 1) * w.block, w.inputs); ++k) {
          const int32_t code = code_at(w, n, k);
          const int32_t value = w.table ? w.table[code] - 128 : code - (1 << (w.bits - 1));
          products += static_cast<uint32_t>(value * x.codes[m * w.padded() + k]);
        }
        const float scale = x.scale[m * w.blocks() + b] * w.scale[(n / kStrip * w.blocks() + b) * kStrip + n % kStrip];
        const float part = static_cast<float>(static_cast<int32_t>(products)) * scale;
        sum = b == 0 ? part : sum + part;
      }
      if (w.bias) sum = sum + w.bias[n];
      if (grid) {
        const float steps = sum * grid->inverse, raised = steps > -512.0f ? steps : -512.0f;
        const float scaled = raised < 512.0f ? raised : 512.0f;
        const int32_t code = static_cast<int32_t>(std::nearbyintf(scaled)) + grid->zero;
        static_cast<uint8_t*>(y)[m * w.features + n] = static_cast<uint8_t>(std::min(std::max(code, 0), 255));
      } else {
        const float raised = w.low > sum ? w.low : sum;  // NaN stays
        static_cast<float*>(y)[m * w.features + n] = w.high < raised ? w.high : raised;
      }
    }
  }
}

}  // namespace

const NBitsKernels kNBitsRef = {"ref", quantize, shift, multiply};

}  // namespace ptq
