// y[i] = table[x[i]] for bytes.
#pragma once

#include <cstdint>

namespace ptq {

using LookupKernel = void (*)(const uint8_t* table, const uint8_t* x, uint8_t* y, int64_t count);

void lookup_ref(const uint8_t* table, const uint8_t* x, uint8_t* y, int64_t count);

LookupKernel choose_lookup();

}  // namespace ptq
