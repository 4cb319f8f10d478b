#include "cpu/measure.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstring>
#include <functional>
#include <string>

#include "src/error.h"

namespace moerun::cpu {
namespace {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

constexpr size_t kReadBytes = size_t{1} << 20;  // between two looks at the clock: 20 to 100 us
constexpr Seconds kDotUnit{100e-6};             // likewise
constexpr int kSinkFloats = 64;

// One thread's place in the buffer and what it has done, on cache lines of its own.
struct alignas(64) Lane {
  const char* share = nullptr;  // [share_bytes] of the buffer, first touched by this thread
  size_t share_bytes = 0;
  size_t position = 0;
  double amount = 0;  // bytes or operations of this repeat
  uint64_t bits = 0;  // results that the compiler must not drop
  float sink[kSinkFloats] = {};
};

// Untouched pages: each comes from the memory next to the thread that first writes it.
class Buffer {
 public:
  explicit Buffer(size_t bytes) : bytes_(bytes) {
    data_ = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (data_ == MAP_FAILED) {
      throw InvalidState("cannot get " + std::to_string(bytes >> 20) +
                         " MiB of memory to measure the read bandwidth: " + std::strerror(errno) +
                         "; free some, or measure with a smaller buffer");
    }
    madvise(data_, bytes, MADV_HUGEPAGE);  // the limit is the memory's, not the page tables'
  }
  ~Buffer() { munmap(data_, bytes_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  char* data() const { return static_cast<char*>(data_); }

 private:
  void* data_ = nullptr;
  size_t bytes_;
};

// What one thread does between two looks at the clock; returns bytes or operations.
using Unit = std::function<double(Lane&)>;

// Every thread repeats `unit` for `seconds`; returns what they did together per second. Time-boxed rather
// than a fixed amount each, so that one thread that is held up does not leave the others idle at the end.
double rate(const Team& team, std::vector<Lane>& lanes, const Unit& unit, double seconds) {
  const auto start = Clock::now();
  const auto deadline = start + Seconds(seconds);
  for (Lane& lane : lanes) lane.amount = 0;
  team.run([&](Member member) noexcept {
    Lane& lane = lanes[member.thread];
    do lane.amount += unit(lane);
    while (Clock::now() < deadline);
  });
  double amount = 0;
  for (const Lane& lane : lanes) amount += lane.amount;
  return amount / Seconds(Clock::now() - start).count();
}

double read_next(const KernelTable& kernels, Lane& lane) {
  lane.bits ^= kernels.limits.read(lane.share + lane.position, kReadBytes);
  lane.position += kReadBytes;
  if (lane.position == lane.share_bytes) lane.position = 0;
  return kReadBytes;
}

// Rounds of multiply-adds that take about kDotUnit.
int64_t dot_rounds(const KernelTable& kernels, DType type, Lane& lane) {
  for (int64_t rounds = 64;; rounds *= 2) {
    const auto start = Clock::now();
    kernels.limits.dot(type, rounds, lane.sink);
    if (Clock::now() - start >= kDotUnit) return rounds;
  }
}

Figure summarise(std::vector<double> rates) {
  std::sort(rates.begin(), rates.end());
  const auto quantile = [&](double q) { return rates[std::lround(q * (rates.size() - 1))]; };
  Figure figure;
  figure.median = quantile(0.5);
  figure.best = rates.back();
  figure.spread = (quantile(0.75) - quantile(0.25)) / figure.median;
  figure.repeats = static_cast<int>(rates.size());
  return figure;
}

std::vector<Lane> share_out(const Team& team, const Buffer& buffer, size_t bytes) {
  std::vector<Lane> lanes(team.size());
  const size_t share = bytes / team.size() / kReadBytes * kReadBytes;
  team.run([&](Member member) noexcept {
    char* begin = buffer.data() + member.thread * share;
    std::memset(begin, member.thread + 1, share);
    lanes[member.thread].share = begin;
    lanes[member.thread].share_bytes = share;
  });
  return lanes;
}

void check(const MeasureOptions& options, int threads) {
  if (options.buffer_bytes < threads * static_cast<int64_t>(kReadBytes)) {
    throw InvalidArgument("buffer_bytes is " + std::to_string(options.buffer_bytes) + ", but " +
                          std::to_string(threads) + " threads need at least 1 MiB each");
  }
  if (!(options.seconds > 0 && options.seconds <= 60)) throw InvalidArgument("seconds must be in (0, 60]");
  if (options.repeats < 1) throw InvalidArgument("repeats must be at least 1");
}

}  // namespace

Limits measure_limits(const KernelTable& kernels, const Team& team, const MeasureOptions& options) {
  check(options, team.size());
  const Buffer buffer(options.buffer_bytes);
  std::vector<Lane> lanes = share_out(team, buffer, options.buffer_bytes);

  std::vector<DType> types{DType::f32};
  if (kernels.bf16_activations) types.push_back(DType::bf16);
  std::vector<Unit> units{[&](Lane& lane) { return read_next(kernels, lane); }};
  for (DType type : types) {
    const int64_t rounds = dot_rounds(kernels, type, lanes[0]);
    units.push_back(
        [&kernels, type, rounds](Lane& lane) { return kernels.limits.dot(type, rounds, lane.sink); });
  }

  std::vector<std::vector<double>> rates(units.size());
  for (int repeat = 0; repeat < options.repeats; ++repeat)
    for (size_t i = 0; i < units.size(); ++i)
      rates[i].push_back(rate(team, lanes, units[i], options.seconds / options.repeats) / 1e9);

  Limits limits;
  limits.threads = team.size();
  limits.buffer_bytes = options.buffer_bytes;
  limits.read_gb_per_s = summarise(rates[0]);
  for (size_t i = 0; i < types.size(); ++i) limits.dot.push_back({types[i], summarise(rates[i + 1])});
  return limits;
}

}  // namespace moerun::cpu
