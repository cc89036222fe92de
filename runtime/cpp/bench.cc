// What the product kernels reach of what the processor's dot products can do: `make kernels`. One thread, processor time.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <vector>

#include "cpu.h"
#include "matmul_nbits/matmul_nbits.h"

namespace {

using namespace ptq;

double seconds() {
  timespec now;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

template <class Work>
double median(Work work, int rounds) {
  std::vector<double> times;
  for (int i = 0; i < rounds; ++i) {
    const double start = seconds();
    work();
    times.push_back(seconds() - start);
  }
  std::nth_element(times.begin(), times.begin() + rounds / 2, times.end());
  return times[rounds / 2];
}

// Products per second of a loop that touches registers only; 0 where it is not written.
double peak() {
#if PTQ_X86
  if (!has_avx512vnni()) return 0;
  constexpr int kLoops = 1000000;
  const auto loop = [] {
    for (int i = 0; i < kLoops; ++i) {
#define PTQ_DOT(n) "vpdpbusd %%zmm20, %%zmm21, %%zmm" #n "\n"
      asm volatile(PTQ_DOT(0) PTQ_DOT(1) PTQ_DOT(2) PTQ_DOT(3) PTQ_DOT(4) PTQ_DOT(5) PTQ_DOT(6) PTQ_DOT(7) PTQ_DOT(8)
                       PTQ_DOT(9) PTQ_DOT(10) PTQ_DOT(11)::
                           : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",
                             "xmm11");
    }
  };
  return 12 * 64.0 * kLoops / median(loop, 15);
#else
  return 0;
#endif
}

}  // namespace

int main() {
  const NBitsKernels& kernels = choose_nbits();
  const double most = peak();
  std::printf("%s, dot products from registers: %.0f G products/s\n", kernels.name, most * 1e-9);
  std::printf("%4s %5s %5s %4s %6s %9s %14s %8s\n", "M", "K", "N", "bits", "block", "ms", "G products/s", "of peak");
  for (const int64_t size : {768, 4096}) {
    for (const int64_t rows : {1, 16, 128}) {
      for (const int64_t bits : {2, 4, 8}) {
        for (const bool blocks : {false, true}) {
          const int64_t inputs = size, features = size == 768 ? 3072 : 4096;
          NBitsWeight w{features, inputs, bits, blocks ? 128 : inputs, nullptr, nullptr, nullptr, nullptr, nullptr,
                        -3e38f,   3e38f};
          std::vector<uint8_t> codes(w.strips() * w.groups() * 64);
          for (size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<uint8_t>(i * 2654435761u >> 13);
          const std::vector<float> scale(w.strips() * w.blocks() * kStrip, 1e-3f), x(rows * inputs, 0.5f);
          w.codes = codes.data();
          w.scale = scale.data();
          std::vector<int8_t> rounded(rows * w.padded());
          std::vector<float> steps(rows * w.blocks()), y(rows * features);
          std::vector<int32_t> totals(rows * w.blocks());
          const CodeRows to{rounded.data(), steps.data(), totals.data()};
          kernels.quantize(w, x.data(), rows, to);
          const auto run = [&] { kernels.multiply(w, to, rows, 0, w.strips(), y.data(), nullptr); };
          const double time = median(run, static_cast<int>(std::max<int64_t>(9, 1200 / rows)));
          const double rate = static_cast<double>(rows * inputs * features) / time;
          std::printf("%4ld %5ld %5ld %4ld %6ld %9.4f %14.0f %7.0f%%\n", static_cast<long>(rows),
                      static_cast<long>(inputs), static_cast<long>(features), static_cast<long>(bits),
                      static_cast<long>(w.block), time * 1e3, rate * 1e-9, most > 0 ? 100 * rate / most : 0);
        }
      }
    }
  }
  return 0;
}
