// Products of rows of 8-bit codes with a packed weight of 2, 4 or 8 bits.
//
// y[m, n] = sum over blocks b of x_scale[m, b] * w_scale[n, b] * sum over k in b of x[m, k] * value(w[n, k])
//           + bias[n], clipped; then as it is, or as a byte round(y * inverse) + zero
//
// value(code) is code - 2^(bits - 1), or table[code]. Inner sums are exact in int32; blocks are added in order, in
// float32, multiplied before they are added, so that every variant gives the same bits.
//
// The weight is in the file as kernels read it, so that nothing is packed and nothing held twice: features in strips of
// 16, inputs in groups of 32 / bits, and in a dword the codes of one feature and one group: byte j holds inputs j,
// j + 4, j + 8 ..., the first in its lowest bits. Shape [ceil(N / 16), groups, 16, 4] bytes; what is beyond N or K is
// never read as anything that counts. w_scale likewise: [ceil(N / 16), blocks, 16].
#pragma once

#include <cstdint>
#include <vector>

namespace ptq {

constexpr int64_t kStrip = 16;      // features that lie side by side
constexpr int64_t kMostInputs = 1 << 16;  // 128 * 255 * 2^16 < 2^31: sums fit

struct NBitsWeight {
  int64_t features, inputs, bits, block;  // block: inputs that share a scale, a multiple of 16; or all of them
  const uint8_t* codes;
  const float* scale;
  const int32_t* column;      // added to the sums: [strips * 16], or null
  const float* bias;          // [strips * 16], or null
  const uint8_t* table;       // 128 + value of each code: [16], or null; for 4 bits only
  float low, high;            // ends of the clip

  int64_t per_group() const { return 32 / bits; }
  int64_t blocks() const { return (inputs + block - 1) / block; }
  int64_t groups() const { return (inputs + per_group() - 1) / per_group(); }
  int64_t strips() const { return (features + kStrip - 1) / kStrip; }
  int64_t padded() const { return (inputs + 15) / 16 * 16; }  // inputs in a row of codes, zeros at its end
};

// Rows of codes, as quantize or shift leave them.
struct CodeRows {
  int8_t* codes;    // [rows, padded]
  float* scale;     // [rows, blocks]
  int32_t* total;   // [rows, blocks], sums of the codes
};

struct ByteGrid {
  float inverse;  // codes per unit
  int32_t zero;
};

struct NBitsKernels {
  const char* name;
  // Rounds rows of floats [rows, inputs] to -127 .. 127 per block of each row: scale = largest / 127. A block with
  // anything that is not finite gets a scale of NaN.
  void (*quantize)(const NBitsWeight& weight, const float* x, int64_t rows, const CodeRows& to);
  // Bytes [rows, inputs] less 128; every scale is `scale`.
  void (*shift)(const NBitsWeight& weight, const uint8_t* x, int64_t rows, float scale, const CodeRows& to);
  // Outputs [rows, features], strips [begin, end) of them, as floats, or as bytes if `grid` is given.
  void (*multiply)(const NBitsWeight& weight, const CodeRows& x, int64_t rows, int64_t begin, int64_t end, void* y,
                   const ByteGrid* grid);
};

extern const NBitsKernels kNBitsRef, kNBitsAvx512Vnni, kNBitsAvxVnni, kNBitsAvx2, kNBitsNeon;

// The fastest that this processor runs. PTQ_KERNELS in the environment asks for one by name, or "ref".
const NBitsKernels& choose_nbits();

// The code of a feature and an input.
inline int32_t code_at(const NBitsWeight& w, int64_t n, int64_t k) {
  const int64_t group = k / w.per_group(), field = k % w.per_group() / 4;
  const uint8_t byte = w.codes[((n / kStrip * w.groups() + group) * kStrip + n % kStrip) * 4 + k % 4];
  return byte >> (field * w.bits) & ((1 << w.bits) - 1);
}

}  // namespace ptq
