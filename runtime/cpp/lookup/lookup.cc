#include "lookup/lookup.h"

#include "cpu.h"

namespace ptq {

void lookup_ref(const uint8_t* table, const uint8_t* x, uint8_t* y, int64_t count) {
  for (int64_t i = 0; i < count; ++i) y[i] = table[x[i]];
}

#if PTQ_X86
namespace {

PTQ_TARGET_BEGIN("avx2")
// Sixteen rows of sixteen bytes: a byte finds its row where its upper half is that row's number; elsewhere bit 7 is set,
// which makes the shuffle give 0.
void lookup_avx2(const uint8_t* table, const uint8_t* x, uint8_t* y, int64_t count) {
  const __m256i beyond = _mm256_set1_epi8(0x70);
  int64_t i = 0;
  for (; i + 32 <= count; i += 32) {
    const __m256i codes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + i));
    __m256i found = _mm256_setzero_si256();
    PTQ_UNROLL
    for (int row = 0; row < 16; ++row) {
      const __m256i values =
          _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table + 16 * row)));
      const __m256i place = _mm256_xor_si256(codes, _mm256_set1_epi8(static_cast<char>(16 * row)));
      found = _mm256_or_si256(found, _mm256_shuffle_epi8(values, _mm256_adds_epu8(place, beyond)));
    }
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(y + i), found);
  }
  lookup_ref(table, x + i, y + i, count - i);
}
PTQ_TARGET_END

PTQ_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512vbmi")
void lookup_avx512vbmi(const uint8_t* table, const uint8_t* x, uint8_t* y, int64_t count) {
  const __m512i a = _mm512_loadu_si512(table), b = _mm512_loadu_si512(table + 64);
  const __m512i c = _mm512_loadu_si512(table + 128), d = _mm512_loadu_si512(table + 192);
  for (int64_t i = 0; i < count; i += 64) {
    const __mmask64 there = count - i >= 64 ? ~__mmask64{0} : (__mmask64{1} << (count - i)) - 1;
    const __m512i codes = _mm512_maskz_loadu_epi8(there, x + i);
    const __m512i low = _mm512_permutex2var_epi8(a, codes, b), high = _mm512_permutex2var_epi8(c, codes, d);
    _mm512_mask_storeu_epi8(y + i, there, _mm512_mask_blend_epi8(_mm512_movepi8_mask(codes), low, high));
  }
}
PTQ_TARGET_END

}  // namespace
#endif

#if PTQ_ARM
namespace {

void lookup_neon(const uint8_t* table, const uint8_t* x, uint8_t* y, int64_t count) {
  const uint8x16x4_t a = vld1q_u8_x4(table), b = vld1q_u8_x4(table + 64);
  const uint8x16x4_t c = vld1q_u8_x4(table + 128), d = vld1q_u8_x4(table + 192);
  const uint8x16_t quarter = vdupq_n_u8(64);
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    uint8x16_t codes = vld1q_u8(x + i), found = vqtbl4q_u8(a, codes);
    codes = vsubq_u8(codes, quarter);
    found = vqtbx4q_u8(found, b, codes);
    codes = vsubq_u8(codes, quarter);
    found = vqtbx4q_u8(found, c, codes);
    codes = vsubq_u8(codes, quarter);
    vst1q_u8(y + i, vqtbx4q_u8(found, d, codes));
  }
  lookup_ref(table, x + i, y + i, count - i);
}

}  // namespace
#endif

LookupKernel choose_lookup() {
#if PTQ_X86
  if (has_avx512vbmi() && wants("avx512vnni")) return lookup_avx512vbmi;
  if (has_avx2() && (wants("avx512vnni") || wants("avxvnni") || wants("avx2"))) return lookup_avx2;
#elif PTQ_ARM
  if (wants("neon")) return lookup_neon;
#endif
  return lookup_ref;
}

}  // namespace ptq
