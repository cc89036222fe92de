// ai.ptq::Lookup: any function of one code, as a table.
//
// Inputs: x uint8, any shape; table uint8 [256], constant. Output: y uint8, y[i] = table[x[i]].
#pragma once

#include "ort.h"

namespace ptq {

struct Lookup : Operator<Lookup> {
  static const char* name() { return "Lookup"; }
  static size_t num_inputs() { return 2; }
  static ElementType input_type(size_t) { return ElementType::kUint8; }
  static Presence presence(size_t) { return Presence::kRequired; }
  static ElementType output_type() { return ElementType::kUint8; }
  static Kernel* create(const KernelInfo* info);
  static void infer(const Inference& node) {
    const Inference::Dims x = node.input(0);
    if (!x.empty()) node.set_output(x, output_type());  // empty where nothing is known
  }
};

}  // namespace ptq
