// To be included between PTQ_TARGET_BEGIN("avx2") and PTQ_TARGET_END.
struct Avx2 {
  using Ints = __m256i;
  using Floats = __m256;
  static constexpr int kLanes = 8;
  static constexpr int kRows = 4, kColumns = 2;  // accumulators of a tile; 16 registers
  static constexpr bool kSignedBytes = false, kManyRegisters = false;

  static Ints load(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
  static Ints set1(int32_t value) { return _mm256_set1_epi32(value); }
  static Ints broadcast(const void* from) {
    int32_t value;
    std::memcpy(&value, from, 4);
    return _mm256_set1_epi32(value);
  }
  static Ints add(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
  static Ints bit_and(Ints a, Ints b) { return _mm256_and_si256(a, b); }
  static Ints bit_xor(Ints a, Ints b) { return _mm256_xor_si256(a, b); }
  template <int kBits>
  static Ints shift_right(Ints a) {
    return _mm256_srli_epi32(a, kBits);
  }
  static Ints table16(const uint8_t* table) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  }
  static Ints look_up(Ints table, Ints index) { return _mm256_shuffle_epi8(table, index); }
  // Pairs of products are summed in 16 bits, where 2 * 255 * 128 would saturate: bytes go in as two halves below 16.
  static Ints dot(Ints sum, Ints bytes, Ints x) {
    const Ints low = bit_and(bytes, _mm256_set1_epi8(15)), high = bit_and(shift_right<4>(bytes), _mm256_set1_epi8(15));
    const Ints part = _mm256_madd_epi16(_mm256_maddubs_epi16(high, x), _mm256_set1_epi16(16));
    return dot_small(_mm256_add_epi32(sum, part), low, x);
  }
  static Ints dot_small(Ints sum, Ints bytes, Ints x) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(bytes, x), _mm256_set1_epi16(1)));
  }
  static Floats to_float(Ints a) { return _mm256_cvtepi32_ps(a); }
  static Ints round(Floats a) { return _mm256_cvtps_epi32(a); }  // to even
  static Floats load_floats(const float* from) { return _mm256_loadu_ps(from); }
  static void store_floats(float* to, Floats a) { _mm256_storeu_ps(to, a); }
  static Floats set1(float value) { return _mm256_set1_ps(value); }
  static Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
  static Floats mul(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
  static Floats min(Floats a, Floats b) { return _mm256_min_ps(a, b); }  // b where one is NaN
  static Floats max(Floats a, Floats b) { return _mm256_max_ps(a, b); }
  static Ints magnitude(Floats a) { return _mm256_and_si256(_mm256_castps_si256(a), _mm256_set1_epi32(0x7FFFFFFF)); }
  static Ints max(Ints a, Ints b) { return _mm256_max_epi32(a, b); }
  static Ints min(Ints a, Ints b) { return _mm256_min_epi32(a, b); }
  static int32_t highest(Ints a) {
    int32_t lanes[kLanes], found = INT32_MIN;
    std::memcpy(lanes, &a, sizeof lanes);
    for (int i = 0; i < kLanes; ++i) found = lanes[i] > found ? lanes[i] : found;
    return found;
  }
  static int32_t total(Ints a) {
    int32_t lanes[kLanes], sum = 0;
    std::memcpy(lanes, &a, sizeof lanes);
    for (int i = 0; i < kLanes; ++i) sum += lanes[i];
    return sum;
  }
  static void store_bytes(void* to, Ints a) {  // the low byte of each lane
    const Ints picked = _mm256_shuffle_epi8(
        a, _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 4, 8, 12, -1, -1, -1, -1,
                            -1, -1, -1, -1, -1, -1, -1, -1));
    const __m128i both = _mm_unpacklo_epi32(_mm256_castsi256_si128(picked), _mm256_extracti128_si256(picked, 1));
    _mm_storel_epi64(static_cast<__m128i*>(to), both);
  }
  static void store_part(void* to, Ints a, int64_t count) {  // of the first `count` lanes
    uint8_t all[kLanes];
    store_bytes(all, a);
    std::memcpy(to, all, count);
  }
  // Four vectors plus `zero` -> bytes in order, saturated.
  static void pack_bytes(const Ints (&a)[4], int32_t zero, uint8_t* to) {
    const Ints offset = _mm256_set1_epi16(static_cast<int16_t>(zero));  // packs work within 128 bits
    const Ints low = _mm256_adds_epi16(_mm256_packs_epi32(a[0], a[1]), offset);
    const Ints high = _mm256_adds_epi16(_mm256_packs_epi32(a[2], a[3]), offset);
    const Ints order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const Ints bytes = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(low, high), order);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), bytes);
  }
  // `count` bytes, then zeros.
  static Ints load_part(const uint8_t* from, int64_t count) {
    if (count >= 32) return load(from);
    alignas(32) uint8_t part[32] = {};
    std::memcpy(part, from, count);
    return load(part);
  }
  static Ints dword_index(const int32_t* lanes) { return load(lanes); }
  static Ints permute(Ints index, Ints a) { return _mm256_permutevar8x32_epi32(a, index); }
  // Four rows of bytes -> dwords with one byte of each, in order. `to` has room for 64 more than `count`.
  static void interleave(const uint8_t* const (&rows)[4], int64_t count, uint8_t flip, uint32_t* to) {
    const __m128i flips = _mm_set1_epi8(static_cast<char>(flip));
    for (int64_t i = 0; i < count; i += 16) {
      __m128i part[4];
      for (int r = 0; r < 4; ++r) {
        alignas(16) uint8_t bytes[16] = {};
        const uint8_t* from = rows[r] + i;
        if (count - i < 16) {
          std::memcpy(bytes, from, count - i);
          from = bytes;
        }
        part[r] = _mm_xor_si128(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)), flips);
      }
      const __m128i low01 = _mm_unpacklo_epi8(part[0], part[1]), high01 = _mm_unpackhi_epi8(part[0], part[1]);
      const __m128i low23 = _mm_unpacklo_epi8(part[2], part[3]), high23 = _mm_unpackhi_epi8(part[2], part[3]);
      __m128i* out = reinterpret_cast<__m128i*>(to + i);
      _mm_storeu_si128(out, _mm_unpacklo_epi16(low01, low23));
      _mm_storeu_si128(out + 1, _mm_unpackhi_epi16(low01, low23));
      _mm_storeu_si128(out + 2, _mm_unpacklo_epi16(high01, high23));
      _mm_storeu_si128(out + 3, _mm_unpackhi_epi16(high01, high23));
    }
  }
};
