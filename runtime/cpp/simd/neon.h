// To be included between PTQ_TARGET_BEGIN("arch=armv8.2-a+dotprod") and PTQ_TARGET_END.
struct Neon {
  using Ints = int32x4_t;
  using Floats = float32x4_t;
  static constexpr int kLanes = 4;
  static constexpr int kRows = 4, kColumns = 4;  // accumulators of a tile; 32 registers
  static constexpr bool kSignedBytes = true, kManyRegisters = true;

  static Ints load(const void* from) { return vreinterpretq_s32_u8(vld1q_u8(static_cast<const uint8_t*>(from))); }
  static Ints set1(int32_t value) { return vdupq_n_s32(value); }
  static Ints broadcast(const void* from) {
    int32_t value;
    std::memcpy(&value, from, 4);
    return vdupq_n_s32(value);
  }
  static Ints add(Ints a, Ints b) { return vaddq_s32(a, b); }
  static Ints bit_and(Ints a, Ints b) { return vandq_s32(a, b); }
  static Ints bit_xor(Ints a, Ints b) { return veorq_s32(a, b); }
  template <int kBits>
  static Ints shift_right(Ints a) {
    if constexpr (kBits == 0) {
      return a;
    } else {
      return vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_s32(a), kBits));
    }
  }
  static Ints table16(const uint8_t* table) { return load(table); }
  static Ints look_up(Ints table, Ints index) {
    return vreinterpretq_s32_u8(vqtbl1q_u8(vreinterpretq_u8_s32(table), vreinterpretq_u8_s32(index)));
  }
  static Ints dot(Ints sum, Ints bytes, Ints x) {
    return vdotq_s32(sum, vreinterpretq_s8_s32(bytes), vreinterpretq_s8_s32(x));
  }
  static Ints dot_small(Ints sum, Ints bytes, Ints x) { return dot(sum, bytes, x); }
  static Floats to_float(Ints a) { return vcvtq_f32_s32(a); }
  static Ints round(Floats a) { return vcvtnq_s32_f32(a); }  // to even
  static Floats load_floats(const float* from) { return vld1q_f32(from); }
  static void store_floats(float* to, Floats a) { vst1q_f32(to, a); }
  static Floats set1(float value) { return vdupq_n_f32(value); }
  static Floats add(Floats a, Floats b) { return vaddq_f32(a, b); }
  static Floats mul(Floats a, Floats b) { return vmulq_f32(a, b); }
  static Floats min(Floats a, Floats b) { return vbslq_f32(vcltq_f32(a, b), a, b); }  // b where one is NaN
  static Floats max(Floats a, Floats b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
  static Ints magnitude(Floats a) { return vandq_s32(vreinterpretq_s32_f32(a), vdupq_n_s32(0x7FFFFFFF)); }
  static Ints max(Ints a, Ints b) { return vmaxq_s32(a, b); }
  static Ints min(Ints a, Ints b) { return vminq_s32(a, b); }
  static int32_t highest(Ints a) { return vmaxvq_s32(a); }
  static int32_t total(Ints a) { return vaddvq_s32(a); }
  static void store_bytes(void* to, Ints a) {  // the low byte of each lane
    const uint8x8_t index = {0, 4, 8, 12, 255, 255, 255, 255};
    const uint8x8_t picked = vqtbl1_u8(vreinterpretq_u8_s32(a), index);
    std::memcpy(to, &picked, 4);
  }
  static void store_part(void* to, Ints a, int64_t count) {  // of the first `count` lanes
    uint8_t all[kLanes];
    store_bytes(all, a);
    std::memcpy(to, all, count);
  }
  // Four vectors plus `zero` -> bytes in order, saturated.
  static void pack_bytes(const Ints (&a)[4], int32_t zero, uint8_t* to) {
    const int16x8_t offset = vdupq_n_s16(static_cast<int16_t>(zero));
    const int16x8_t low = vqaddq_s16(vcombine_s16(vqmovn_s32(a[0]), vqmovn_s32(a[1])), offset);
    const int16x8_t high = vqaddq_s16(vcombine_s16(vqmovn_s32(a[2]), vqmovn_s32(a[3])), offset);
    vst1q_u8(to, vcombine_u8(vqmovun_s16(low), vqmovun_s16(high)));
  }
  // `count` bytes, then zeros.
  static Ints load_part(const uint8_t* from, int64_t count) {
    if (count >= 16) return load(from);
    uint8_t part[16] = {};
    std::memcpy(part, from, count);
    return load(part);
  }
  static Ints dword_index(const int32_t* lanes) {
    uint8_t bytes[16];
    for (int i = 0; i < 16; ++i) bytes[i] = static_cast<uint8_t>(4 * lanes[i / 4] + i % 4);
    return load(bytes);
  }
  static Ints permute(Ints index, Ints a) { return look_up(a, index); }
  // Four rows of bytes -> dwords with one byte of each, in order. `to` has room for 64 more than `count`.
  static void interleave(const uint8_t* const (&rows)[4], int64_t count, uint8_t flip, uint32_t* to) {
    for (int64_t i = 0; i < count; i += 16) {
      uint8x16x4_t part;
      for (int r = 0; r < 4; ++r) {
        part.val[r] = vreinterpretq_u8_s32(load_part(rows[r] + i, count - i));
        part.val[r] = veorq_u8(part.val[r], vdupq_n_u8(flip));
      }
      vst4q_u8(reinterpret_cast<uint8_t*>(to + i), part);
    }
  }
};
