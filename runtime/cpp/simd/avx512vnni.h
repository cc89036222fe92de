// To be included between PTQ_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni") and PTQ_TARGET_END.
struct Avx512Vnni {
  using Ints = __m512i;
  using Floats = __m512;
  static constexpr int kLanes = 16;
  static constexpr int kRows = 6, kColumns = 4;  // accumulators of a tile; 32 registers
  static constexpr bool kSignedBytes = false, kManyRegisters = true;

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
  static void store_part(void* to, Ints a, int64_t count) {  // of the first `count` lanes
    _mm_mask_storeu_epi8(to, static_cast<__mmask16>((1u << count) - 1u), _mm512_cvtepi32_epi8(a));
  }
  // Four vectors plus `zero` -> bytes in order, saturated.
  static void pack_bytes(const Ints (&a)[4], int32_t zero, uint8_t* to) {
    const Ints offset = _mm512_set1_epi16(static_cast<int16_t>(zero));  // packs work within 128 bits
    const Ints low = _mm512_adds_epi16(_mm512_packs_epi32(a[0], a[1]), offset);
    const Ints high = _mm512_adds_epi16(_mm512_packs_epi32(a[2], a[3]), offset);
    const Ints order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_storeu_si512(to, _mm512_permutexvar_epi32(order, _mm512_packus_epi16(low, high)));
  }
  // `count` bytes, then zeros.
  static Ints load_part(const uint8_t* from, int64_t count) {
    return _mm512_maskz_loadu_epi8(count >= 64 ? ~0ull : (1ull << count) - 1ull, from);
  }
  static Ints dword_index(const int32_t* lanes) { return load(lanes); }
  static Ints permute(Ints index, Ints a) { return _mm512_permutexvar_epi32(index, a); }
  // Four rows of bytes -> dwords with one byte of each, in order. `to` has room for 64 more than `count`.
  static void interleave(const uint8_t* const (&rows)[4], int64_t count, uint8_t flip, uint32_t* to) {
    // Unpacking works within 128 bits: chunks of 4 bytes are first dealt to the four lanes, so that it is in order.
    const Ints deal = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const Ints flips = _mm512_set1_epi8(static_cast<char>(flip));
    for (int64_t i = 0; i < count; i += 64) {
      Ints part[4];
      for (int r = 0; r < 4; ++r) {
        part[r] = _mm512_permutexvar_epi32(deal, bit_xor(load_part(rows[r] + i, count - i), flips));
      }
      const Ints low01 = _mm512_unpacklo_epi8(part[0], part[1]), high01 = _mm512_unpackhi_epi8(part[0], part[1]);
      const Ints low23 = _mm512_unpacklo_epi8(part[2], part[3]), high23 = _mm512_unpackhi_epi8(part[2], part[3]);
      _mm512_storeu_si512(to + i, _mm512_unpacklo_epi16(low01, low23));
      _mm512_storeu_si512(to + i + 16, _mm512_unpackhi_epi16(low01, low23));
      _mm512_storeu_si512(to + i + 32, _mm512_unpacklo_epi16(high01, high23));
      _mm512_storeu_si512(to + i + 48, _mm512_unpackhi_epi16(high01, high23));
    }
  }
};
