// To be included between PTQ_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni") and PTQ_TARGET_END.
struct Avx512Vnni {
  using Ints = __m512i;
  using Floats = __m512;
  static constexpr int kLanes = 16;
  static constexpr int kRows = 6, kColumns = 4;  // accumulators of a tile; 32 registers
  static constexpr bool kSignedBytes = false;

  static Ints load(const void* from) { return _mm512_loadu_si512(from); }
  static Ints set1(int32_t value) { return _mm512_set1_epi32(value); }
  static Ints broadcast(const void* from) {
    int32_t value;
    std::memcpy(&value, from, 4);
    return _mm512_set1_epi32(value);
  }
  static Ints add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
  static Ints bit_and(Ints a, Ints b) { return _mm512_and_si512(a, b); }
  static Ints bit_xor(Ints a, Ints b) { return _mm512_xor_si512(a, b); }
  template <int kBits>
  static Ints shift_right(Ints a) {
    return _mm512_srli_epi32(a, kBits);
  }
  static Ints table16(const uint8_t* table) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  }
  static Ints look_up(Ints table, Ints index) { return _mm512_shuffle_epi8(table, index); }
  static Ints dot(Ints sum, Ints bytes, Ints x) { return _mm512_dpbusd_epi32(sum, bytes, x); }
  static Ints dot_small(Ints sum, Ints bytes, Ints x) { return _mm512_dpbusd_epi32(sum, bytes, x); }
  static Floats to_float(Ints a) { return _mm512_cvtepi32_ps(a); }
  static Ints round(Floats a) { return _mm512_cvtps_epi32(a); }  // to even
  static Floats load_floats(const float* from) { return _mm512_loadu_ps(from); }
  static void store_floats(float* to, Floats a) { _mm512_storeu_ps(to, a); }
  static Floats set1(float value) { return _mm512_set1_ps(value); }
  static Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
  static Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
  static Floats min(Floats a, Floats b) { return _mm512_min_ps(a, b); }  // b where one is NaN
  static Floats max(Floats a, Floats b) { return _mm512_max_ps(a, b); }
  static Ints magnitude(Floats a) { return _mm512_and_si512(_mm512_castps_si512(a), _mm512_set1_epi32(0x7FFFFFFF)); }
  static Ints max(Ints a, Ints b) { return _mm512_max_epi32(a, b); }
  static Ints min(Ints a, Ints b) { return _mm512_min_epi32(a, b); }
  static int32_t highest(Ints a) { return _mm512_reduce_max_epi32(a); }
  static int32_t total(Ints a) { return _mm512_reduce_add_epi32(a); }
  static void store_bytes(void* to, Ints a) {  // the low byte of each lane
    _mm_storeu_si128(static_cast<__m128i*>(to), _mm512_cvtepi32_epi8(a));
  }
};
