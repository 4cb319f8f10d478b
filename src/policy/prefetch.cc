#include "src/policy/prefetch.h"

#include <algorithm>
#include <string>

#include "src/error.h"

namespace moerun::policy {
namespace {

void check(const PrefetchRequest& request) {
  for (const Forecast& f : request.forecasts) {
    if (f.loads.size() != f.resident.size() || f.loads.size() != f.chance.size() ||
        f.loads.size() != f.left.size()) {
      throw InvalidArgument(
          "prefetch: loads, chance, resident and left of a forecast differ in length; pass one entry per "
          "expert");
    }
    if (f.victims.size() != f.victim_chance.size()) {
      throw InvalidArgument("prefetch: victims and victim_chance of a forecast differ in length");
    }
    if (f.distance < 1 || f.distance > kMaxDistance) {
      throw InvalidArgument("prefetch: distance " + std::to_string(f.distance) + " is not in 1.." +
                            std::to_string(kMaxDistance));
    }
  }
}

double makespan_us(const PrefetchRequest& request, const Forecast& forecast,
                   std::span<const uint8_t> resident, PrefetchScratch& scratch) {
  // Whole experts: dividing one would hide part of what an arrival saves.
  const SplitRequest layer{forecast.loads, resident, request.cost, request.shared_gpu_us, false};
  split(request.method, layer, scratch.split, scratch.plan);
  return scratch.plan.makespan_us;
}

struct Candidate {
  size_t forecast;
  int32_t expert;
  double gain_us;
  double merit;  // what the choice goes by
};

}  // namespace

PrefetchConfidence::PrefetchConfidence(int32_t ranks) : ranks_(ranks) {
  if (ranks < 1) throw InvalidArgument("PrefetchConfidence: ranks must be at least 1");
  values_.assign(static_cast<size_t>(kMaxDistance) * static_cast<size_t>(ranks), kFirstConfidence);
}

size_t PrefetchConfidence::index(int32_t distance, int32_t rank) const {
  if (distance < 1 || distance > kMaxDistance || rank < 0) {
    throw InvalidArgument("PrefetchConfidence: distance " + std::to_string(distance) + " is not in 1.." +
                          std::to_string(kMaxDistance) + ", or the rank is negative");
  }
  return static_cast<size_t>(distance - 1) * static_cast<size_t>(ranks_) +
         static_cast<size_t>(std::min(rank, ranks_ - 1));
}

void PrefetchConfidence::observe(int32_t distance, int32_t rank, bool used) {
  double& value = values_[index(distance, rank)];
  value += kRate * ((used ? 1.0 : 0.0) - value);
}

double PrefetchConfidence::value(int32_t distance, int32_t rank) const {
  return values_[index(distance, rank)];
}

void prefetch(const PrefetchRequest& request, PrefetchScratch& scratch, std::vector<Prefetch>& out) {
  check(request);
  out.clear();
  const auto forecasts = request.forecasts;
  scratch.resident.resize(forecasts.size());
  scratch.next_victim.assign(forecasts.size(), 0);
  for (size_t i = 0; i < forecasts.size(); ++i) {
    scratch.resident[i].assign(forecasts[i].resident.begin(), forecasts[i].resident.end());
  }

  double pcie_us = request.pcie_free_us;
  while (true) {
    Candidate best{0, -1, 0, 0};
    for (size_t i = 0; i < forecasts.size(); ++i) {
      const Forecast& f = forecasts[i];
      auto& resident = scratch.resident[i];
      const size_t v = scratch.next_victim[i];
      if (v >= f.victims.size() || pcie_us >= f.start_us) continue;
      const double without_us = makespan_us(request, f, resident, scratch);
      for (int32_t e = 0; e < static_cast<int32_t>(f.loads.size()); ++e) {
        if (f.loads[e] == 0 || resident[e] != 0 || f.chance[e] <= 0) continue;
        if (pcie_us + f.left[e] * request.cost.copy_us > f.start_us) continue;
        resident[e] = 1;
        const double saved_us = without_us - makespan_us(request, f, resident, scratch);
        resident[e] = 0;
        const double gain_us =
            (f.chance[e] - f.victim_chance[v]) * saved_us - (1 - f.chance[e]) * request.chunk_us;
        const double merit = request.impact ? gain_us / f.left[e] : f.chance[e];
        if (merit > best.merit) best = {i, e, gain_us, merit};
      }
    }
    if (best.expert < 0) return;
    const Forecast& f = forecasts[best.forecast];
    pcie_us += f.left[best.expert] * request.cost.copy_us;
    out.push_back({f.distance, best.expert, f.victims[scratch.next_victim[best.forecast]++], best.gain_us});
    scratch.resident[best.forecast][best.expert] = 1;
  }
}

}  // namespace moerun::policy
