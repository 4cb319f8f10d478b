#include "src/scheduler/device_buffers.h"

#include <algorithm>

namespace moerun {
namespace {

constexpr int64_t kSmallest = 4096;  // so that no address is null

cuda::DevicePtr grow(Growing<cuda::DeviceMemory>& memory, int64_t bytes) {
  return memory.at_least(std::max(bytes, kSmallest)).address();
}

std::byte* grow(Growing<cuda::PinnedMemory>& memory, int64_t bytes) {
  return static_cast<std::byte*>(memory.at_least(std::max(bytes, kSmallest)).data());
}

}  // namespace

DeviceBuffers::DeviceBuffers(const cuda::ContextPtr& c)
    : x_(c),
      lists_(c),
      h_(c),
      partial_(c),
      y_(c),
      cpu_(c),
      out_(c),
      host_x_(c),
      host_lists_(c),
      host_cpu_(c),
      host_out_(c) {}

void DeviceBuffers::reserve(const StepSizes& s) {
  device_ = {.x = grow(x_, s.x),
             .lists = grow(lists_, s.lists),
             .h = grow(h_, s.h),
             .partial = grow(partial_, s.partial),
             .y = grow(y_, s.y),
             .cpu = grow(cpu_, s.cpu),
             .out = grow(out_, s.out)};
  host_ = {.x = grow(host_x_, s.x),
           .lists = grow(host_lists_, s.lists),
           .out = grow(host_out_, s.out),
           .cpu = reinterpret_cast<float*>(grow(host_cpu_, s.cpu))};
}

int64_t DeviceBuffers::device_bytes() const {
  return x_.bytes() + lists_.bytes() + h_.bytes() + partial_.bytes() + y_.bytes() + cpu_.bytes() +
         out_.bytes();
}

}  // namespace moerun
