#include "cpu/measure.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstring>
#include <string>
#include <utility>

#include "cpu/arithmetic.h"
#include "src/error.h"

namespace moerun::cpu {
namespace {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

constexpr size_t kReadBytes = size_t{1} << 20;  // between two looks at the clock: 20 to 100 us
constexpr Seconds kDotUnit{100e-6};             // likewise
constexpr int kSinkFloats = 64;

}  // namespace

// Untouched pages: each comes from the memory next to the thread that first writes it.
struct LimitMeter::Buffer {
  explicit Buffer(size_t n) : bytes(n) {
    data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (data == MAP_FAILED) {
      throw InvalidState("cannot get " + std::to_string(bytes >> 20) +
                         " MiB of memory to measure the read bandwidth: " + std::strerror(errno) +
                         "; free some, or measure with a smaller buffer");
    }
    madvise(data, bytes, MADV_HUGEPAGE);  // the limit is the memory's, not the page tables'
  }
  ~Buffer() { munmap(data, bytes); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  void* data = nullptr;
  size_t bytes;
};

// One thread's place in the buffer and what it has done, on cache lines of its own.
struct alignas(64) LimitMeter::Lane {
  const char* share = nullptr;  // [share_bytes] of the buffer, first touched by this thread
  size_t share_bytes = 0;
  size_t position = 0;
  double amount = 0;  // bytes or operations of this slice
  uint64_t bits = 0;  // results that the compiler must not drop
  float sink[kSinkFloats] = {};
};

LimitMeter::LimitMeter(const KernelTable& kernels, Team team, int64_t buffer_bytes)
    : kernels_(kernels), team_(team), lanes_(team.size()) {
  if (buffer_bytes < threads() * static_cast<int64_t>(kReadBytes)) {
    throw InvalidArgument("buffer_bytes is " + std::to_string(buffer_bytes) + ", but " +
                          std::to_string(threads()) + " threads need at least 1 MiB each");
  }
  buffer_ = std::make_unique<Buffer>(buffer_bytes);
  const size_t share = buffer_bytes / threads() / kReadBytes * kReadBytes;
  team_.run([&](Member member) noexcept {
    char* begin = static_cast<char*>(buffer_->data) + member.thread * share;
    std::memset(begin, member.thread + 1, share);
    lanes_[member.thread].share = begin;
    lanes_[member.thread].share_bytes = share;
  });
}

LimitMeter::~LimitMeter() = default;

std::vector<DotType> LimitMeter::dot_types() const {
  std::vector<DotType> types;
  for (int t = 0; t < kDotTypes; ++t)
    if (kernels_.limits.dot[t]) types.push_back(static_cast<DotType>(t));
  return types;
}

DotType LimitMeter::dot_type(WeightFormat format) const {
  return arithmetic(kernels_, DType::bf16, format).kernels->dot;
}

// Every thread repeats `unit`, which returns bytes or operations, for `seconds`; returns what they did
// together per nanosecond. Time-boxed rather than a fixed amount each, so that one thread that is held up
// does not leave the others idle at the end.
template <class Unit>
double LimitMeter::rate(const Unit& unit, double seconds) {
  const auto start = Clock::now();
  const auto deadline = start + Seconds(seconds);
  for (Lane& lane : lanes_) lane.amount = 0;
  team_.run([&](Member member) noexcept {
    Lane& lane = lanes_[member.thread];
    do lane.amount += unit(lane);
    while (Clock::now() < deadline);
  });
  double amount = 0;
  for (const Lane& lane : lanes_) amount += lane.amount;
  return amount / Seconds(Clock::now() - start).count() / 1e9;
}

double LimitMeter::read(double seconds) {
  return rate(
      [this](Lane& lane) -> double {
        if (lane.share == nullptr) return 0;  // the runtime gave fewer threads than asked for
        lane.bits ^= kernels_.limits.read(lane.share + lane.position, kReadBytes);
        lane.position = (lane.position + kReadBytes) % lane.share_bytes;
        return kReadBytes;
      },
      seconds);
}

double LimitMeter::dot(DotType type, double seconds) {
  const auto multiply_add = kernels_.limits.dot[static_cast<int>(type)];
  if (!multiply_add)
    throw InvalidArgument(std::string("the ") + kernels_.isa + " kernels do not multiply " + name_of(type) +
                          "; they multiply what dot_types lists");
  int64_t rounds = 64;  // of multiply-adds between two looks at the clock
  for (auto start = Clock::now();; start = Clock::now(), rounds *= 2) {
    multiply_add(rounds, lanes_[0].sink);
    if (Clock::now() - start >= kDotUnit) break;
  }
  return rate([&](Lane& lane) { return multiply_add(rounds, lane.sink); }, seconds);
}

namespace {

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

void check(const MeasureOptions& options) {
  if (!(options.seconds > 0 && options.seconds <= 60)) throw InvalidArgument("seconds must be in (0, 60]");
  if (options.repeats < 1) throw InvalidArgument("repeats must be at least 1");
}

}  // namespace

Limits measure_limits(const KernelTable& kernels, Team team, const MeasureOptions& options) {
  check(options);
  LimitMeter meter(kernels, team, options.buffer_bytes);
  const std::vector<DotType> types = meter.dot_types();
  const double slice = options.seconds / options.repeats;

  std::vector<double> read_rates;
  std::vector<std::vector<double>> dot_rates(types.size());
  for (int repeat = 0; repeat < options.repeats; ++repeat) {
    read_rates.push_back(meter.read(slice));
    for (size_t i = 0; i < types.size(); ++i) dot_rates[i].push_back(meter.dot(types[i], slice));
  }

  Limits limits;
  limits.threads = meter.threads();
  limits.buffer_bytes = options.buffer_bytes;
  limits.read_gb_per_s = summarise(std::move(read_rates));
  for (size_t i = 0; i < types.size(); ++i) limits.dot.push_back({types[i], summarise(dot_rates[i])});
  return limits;
}

}  // namespace moerun::cpu
