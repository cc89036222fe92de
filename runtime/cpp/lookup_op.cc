#include "lookup_op.h"

#include "lookup/lookup.h"
#include "node.h"

namespace ptq {
namespace {

constexpr int64_t kCodes = 256;

struct Task {
  LookupKernel kernel;
  const uint8_t* table;
  const uint8_t* x;
  uint8_t* y;
  int64_t count, tasks;
};

void run_task(void* data, size_t index) {
  const Task& task = *static_cast<const Task*>(data);
  const int64_t i = static_cast<int64_t>(index);
  const int64_t start = task.count * i / task.tasks, end = task.count * (i + 1) / task.tasks;
  task.kernel(task.table, task.x + start, task.y + start, end - start);
}

class LookupKernelOp : public Kernel {
 public:
  explicit LookupKernelOp(const KernelInfo* info) {
    const NodeReader read(Lookup::name(), info);
    table_ = read.constant<uint8_t>(1, "table");
    if (table_.size() != kCodes) read.refuse("table has " + std::to_string(table_.size()) + " elements; expected 256");
    kernel_ = choose_lookup();
  }

  void compute(const Call& call) const override {
    const Tensor x = call.input(0);
    const Shape dims = x.shape();
    const Tensor y = call.output(dims);
    const int64_t count = std::accumulate(dims.begin(), dims.end(), int64_t{1}, std::multiplies<int64_t>());
    if (count == 0) return;
    Task task{kernel_, table_.data(), x.data<uint8_t>(), y.data<uint8_t>(), count, 1};
    if (count < kSmallWork) {
      run_task(&task, 0);
      return;
    }
    task.tasks = kMaxTasks;
    call.in_parallel(run_task, task.tasks, &task);
  }

 private:
  std::vector<uint8_t> table_;
  LookupKernel kernel_;
};

}  // namespace

Kernel* Lookup::create(const KernelInfo* info) { return new LookupKernelOp(info); }

}  // namespace ptq
