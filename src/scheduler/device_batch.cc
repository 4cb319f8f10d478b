#include "src/scheduler/device_batch.h"

#include <algorithm>
#include <chrono>

#include "src/scheduler/fences.h"

namespace moerun {
namespace {

constexpr int64_t kSmallest = 4096;  // so that no address is null

cuda::DevicePtr address(const void* on_device) {
  return reinterpret_cast<cuda::DevicePtr>(on_device);
}

}  // namespace

DeviceInbox::DeviceInbox(const cuda::ContextPtr& context)
    : context_(context),
      stream_(context),
      routed_(context),
      x_here_(context),
      routing_(context),
      x_(context),
      out_(context) {}

void DeviceInbox::reserve(int64_t x_bytes, int64_t pairs) {
  constexpr int64_t kMostPairBytes = 8 + 4, kAlignment = 16;  // an id and a weight
  routing_.at_least(std::max(pairs * kMostPairBytes + kAlignment, kSmallest));
  x_.at_least(std::max(x_bytes, kSmallest));
  out_.at_least(std::max(x_bytes, kSmallest));
}

const cpu::Batch& DeviceInbox::fetch(const DeviceBatch& device) {
  const cpu::Batch& b = device.batch;
  const cpu::Routing& r = b.routing;
  const int64_t pairs = r.tokens * r.top_k;
  const int64_t id_bytes = pairs * (r.ids_are_64_bit ? 8 : 4), weight_bytes = pairs * size_of(r.weights_type);
  const int64_t weights_at = (id_bytes + 15) / 16 * 16;
  x_bytes_ = r.tokens * b.x_stride * size_of(b.x_type);
  device_x_ = address(b.x);
  x_started_ = false;
  auto* const ids =
      static_cast<std::byte*>(routing_.at_least(std::max(weights_at + weight_bytes, kSmallest)).data());
  host_ = b;
  host_.x = x_.at_least(std::max(x_bytes_, kSmallest)).data();
  host_.out = out_.at_least(std::max(x_bytes_, kSmallest)).data();
  host_.routing.ids = ids;
  host_.routing.weights = ids + weights_at;

  stream_.wait(device.order.given());
  if (pairs == 0) return host_;
  stream_.copy_to_host(ids, address(r.ids), id_bytes);
  stream_.copy_to_host(ids + weights_at, address(r.weights), weight_bytes);
  stream_.record(routed_);
  constexpr auto kSpin = std::chrono::microseconds(50);
  const auto parked = std::chrono::steady_clock::now() + kSpin;
  while (!routed_.done() && std::chrono::steady_clock::now() < parked) continue;
  routed_.synchronize();
  return host_;
}

void DeviceInbox::start_x() {
  if (x_started_) return;
  stream_.copy_to_host(x_.at_least(x_bytes_).data(), device_x_, x_bytes_);
  stream_.record(x_here_);
  x_started_ = true;
}

void DeviceInbox::wait_for_x() const {
  x_here_.synchronize();
}

void DeviceInbox::abandon() noexcept {
  wait_until_idle(*context_, stream_);
}

}  // namespace moerun
