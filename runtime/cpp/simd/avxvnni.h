// To be included behind avx2.h, between PTQ_TARGET_BEGIN and PTQ_TARGET_END. The instruction has two encodings: of
// AVX-VNNI ("avx2,avxvnni"), and with PTQ_EVEX, so that a machine without that can test it, of AVX512-VNNI.
struct AvxVnni : Avx2 {
#if defined(PTQ_EVEX)
  static Ints dot(Ints sum, Ints bytes, Ints x) { return _mm256_dpbusd_epi32(sum, bytes, x); }
#else
  static Ints dot(Ints sum, Ints bytes, Ints x) { return _mm256_dpbusd_avx_epi32(sum, bytes, x); }
#endif
  static Ints dot_small(Ints sum, Ints bytes, Ints x) { return dot(sum, bytes, x); }
};
