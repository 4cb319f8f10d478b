#include "src/policy/exact.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <set>

#include "src/policy/balanced.h"
#include "src/policy/subset_sums.h"

namespace moerun::policy {
namespace {

constexpr double kTolerance = 1e-9;

// One expert may be split; it is out of the lists then, and its share on the CPU is free.
struct Split {
  Expert expert;
  bool cached;
};

struct Assignment {
  std::vector<int32_t> copied, stolen;  // ids
  std::optional<Split> split;
  double cpu_share = 0;
  bool piece = false;  // only the GPU's part of the divided expert is copied, last
};

std::vector<int32_t> loads_of(const std::vector<Expert>& experts) {
  std::vector<int32_t> out;
  for (const Expert& e : experts) out.push_back(e.load);
  return out;
}

// A lower bound on every assignment with `copies` copies and some work on the CPU, splits included: weak
// duality of the linear relaxation, with weight w on T_C and 1 - w on T_G (once as A + G(X), once as x +
// G(X)), maximised over w.
class Relaxation {
 public:
  Relaxation(const SplitRequest& request, const ActiveExperts& active) : request_(request), active_(active) {}

  double bound(int32_t copies) const {
    double best = 0;
    for (const Path path : {Path::gpu, Path::first_copy, Path::last_copy}) {  // each is concave in w
      if (path == Path::first_copy && copies == 0) continue;
      double low = 0, high = 1;
      for (int i = 0; i < 60; ++i) {
        const double a = low + (high - low) / 3, b = high - (high - low) / 3;
        const double at_a = lagrangian(copies, a, path), at_b = lagrangian(copies, b, path);
        best = std::max({best, at_a, at_b});
        (at_a < at_b ? low : high) = at_a < at_b ? a : b;
      }
    }
    return std::max(best, copies * request_.cost.copy_us);
  }

 private:
  // Which of the paths that T_G is the longest of has the weight 1 - w.
  enum class Path : uint8_t { gpu, first_copy, last_copy };

  double lagrangian(int32_t copies, double w, Path path) const {
    const CostModel& cost = request_.cost;
    const double begins_us = path == Path::gpu          ? request_.shared_gpu_us
                             : path == Path::first_copy ? cost.copy_us
                                                        : copies * cost.copy_us;
    double sum = w * cost.cpu_first_us + (1 - w) * begins_us;
    std::vector<double> moves;  // what copying one more expert changes
    double piece = 0;           // what copying a part of one changes, at best
    for (const Expert& e : active_.uncached) {
      const double c = cost.cpu_us(e.load), g = cost.gpu_us(e.load);
      sum += w * c;
      moves.push_back((path == Path::last_copy ? 0 : (1 - w) * g) - w * c);
      piece = std::min(piece, (1 - w) * (path == Path::last_copy ? cost.copy_us + g : g) - w * c);
    }
    std::sort(moves.begin(), moves.end());
    for (int32_t i = 0; i < copies; ++i) sum += request_.allow_fraction ? std::min(moves[i], 0.0) : moves[i];
    if (request_.allow_fraction && request_.partial_copy) sum += piece;
    if (path != Path::gpu) return sum;
    for (const Expert& e : active_.cached) {
      sum += std::min(w * cost.cpu_us(e.load), (1 - w) * cost.gpu_us(e.load));
    }
    return sum;
  }

  const SplitRequest& request_;
  const ActiveExperts& active_;
};

// All assignments with one given expert split, or none.
class Enumeration {
 public:
  Enumeration(const SplitRequest& request, const ActiveExperts& active, std::optional<Split> split)
      : cost_(request.cost),
        shared_us_(request.shared_gpu_us),
        split_(split),
        piece_(split && !split->cached && request.partial_copy),
        cached_(without(active.cached)),
        uncached_(without(active.uncached)),
        cached_sums_(loads_of(cached_)),
        uncached_sums_(loads_of(uncached_)) {
    if (split_) {
      split_cpu_us_ = cost_.cpu_us(split_->expert.load);
      split_gpu_us_ = cost_.gpu_us(split_->expert.load);
    }
  }

  // Improves `best_us` and `best` over all assignments with `copies` copies, none of which is below
  // `bound_us`.
  void improve(int32_t copies, double bound_us, double& best_us, Assignment& best) {
    const int32_t chosen = copies - (split_ && !split_->cached && !piece_ ? 1 : 0);
    const auto u = static_cast<int32_t>(uncached_.size());
    if (chosen < 0 || chosen > u) return;
    const double pcie_us = copies * cost_.copy_us;
    // The lightest copied expert matters only where the end of the last copy may be the longest path.
    const double after_us = piece_ ? split_gpu_us_ + cost_.gpu_part_us : 0;  // a piece runs after it
    const bool tail_matters =
        chosen > 0 && pcie_us + cost_.gpu_us(uncached_.front().load) + after_us > bound_us;
    for (int32_t steals = 0; steals <= static_cast<int32_t>(cached_.size()); ++steals) {
      if (!tail_matters) {
        scan({copies, chosen, steals, u, -1}, best_us, best);
        continue;
      }
      for (int32_t lightest = u - 1; lightest >= chosen - 1; --lightest) {
        scan({copies, chosen, steals, lightest, lightest}, best_us, best);
      }
    }
  }

 private:
  // `chosen` of the uncached experts are copied: `lightest` if >= 0, the rest of them from the first
  // `prefix`.
  struct Family {
    int32_t copies, chosen, steals, prefix, lightest;
  };
  struct Times {
    double cpu_us;           // without the split expert's share
    double gpu_us;           // A + G(X), the split expert not counted
    double copied_gpu_us;    // x + G(X), likewise
    double last_gpu_us = 0;  // of the lightest copied expert
    double pcie_us = 0;
    bool any_copied_whole = false;
  };

  std::vector<Expert> without(const std::vector<Expert>& experts) const {
    std::vector<Expert> out;
    for (const Expert& e : experts) {
      if (!split_ || e.id != split_->expert.id) out.push_back(e);
    }
    return out;
  }

  Times times(const Family& family, int64_t copied_tokens, int64_t stolen_tokens) const {
    const auto u = static_cast<double>(uncached_.size()), r = static_cast<double>(cached_.size());
    const double cpu_experts = u - family.chosen + family.steals;
    const auto cpu_tokens = static_cast<double>(uncached_sums_.total() - copied_tokens + stolen_tokens);
    Times t{};
    t.cpu_us = (cpu_experts > 0 || split_ ? cost_.cpu_first_us : 0) + (split_ ? cost_.cpu_part_us : 0) +
               cpu_experts * cost_.cpu_expert_us + cpu_tokens * cost_.cpu_token_us;
    const double copied_us =
        family.chosen * cost_.gpu_expert_us + static_cast<double>(copied_tokens) * cost_.gpu_token_us;
    t.gpu_us = shared_us_ + (r - family.steals) * cost_.gpu_expert_us +
               static_cast<double>(cached_sums_.total() - stolen_tokens) * cost_.gpu_token_us + copied_us;
    t.copied_gpu_us = family.copies > 0 ? cost_.copy_us + copied_us : 0;
    t.pcie_us = family.copies * cost_.copy_us;
    t.any_copied_whole = family.chosen > 0;
    if (family.lightest >= 0) t.last_gpu_us = cost_.gpu_us(uncached_[family.lightest].load);
    return t;
  }

  // T_G with the share `f` of the split expert on the CPU.
  double gpu_end_us(const Times& t, double f) const {
    const double rest_us = (1 - f) * split_gpu_us_ + (split_ ? cost_.gpu_part_us : 0);
    if (!split_ || split_->cached) {
      return std::max(
          {t.gpu_us + rest_us, t.copied_gpu_us, t.any_copied_whole ? t.pcie_us + t.last_gpu_us : 0.0});
    }
    if (piece_) {
      const double whole_us =
          std::max({t.gpu_us, t.copied_gpu_us, t.any_copied_whole ? t.pcie_us + t.last_gpu_us : 0.0});
      return std::max(whole_us + rest_us, t.pcie_us + (1 - f) * cost_.copy_us + rest_us);
    }
    return std::max({t.gpu_us + rest_us, t.copied_gpu_us + rest_us,
                     t.pcie_us + (t.any_copied_whole ? std::min(t.last_gpu_us, rest_us) : rest_us)});
  }

  // The share at which T_C, not falling, meets T_G, not rising.
  double best_share(const Times& t) const {
    double low = 0, high = 1;
    for (int i = 0; i < 60; ++i) {
      const double mid = (low + high) / 2;
      (t.cpu_us + mid * split_cpu_us_ < gpu_end_us(t, mid) ? low : high) = mid;
    }
    return high;
  }

  void scan(const Family& family, double& best_us, Assignment& best) {
    const bool fixed = family.lightest >= 0;
    const int64_t fixed_tokens = fixed ? uncached_[family.lightest].load : 0;
    const int32_t free_count = family.chosen - (fixed ? 1 : 0);
    const auto r = static_cast<int32_t>(cached_.size());
    for (int64_t stolen = 0; stolen <= cached_sums_.total(); ++stolen) {
      if (!cached_sums_.reachable(r, family.steals, stolen)) continue;
      // Sums of copied loads that can beat the best: T_C at share 0 and T_G at share 1 must stay below it.
      const Times empty = times(family, 0, stolen);
      int64_t from = 0, to = uncached_sums_.total();
      if (cost_.cpu_token_us > 0) {
        from = std::max<int64_t>(
            from,
            static_cast<int64_t>(std::floor(std::max(0.0, (empty.cpu_us - best_us) / cost_.cpu_token_us))));
      }
      if (cost_.gpu_token_us > 0) {
        const double room_us = best_us - std::max(empty.gpu_us, empty.copied_gpu_us);
        if (room_us < 0) continue;
        to = std::min<int64_t>(to,
                               static_cast<int64_t>(std::ceil(std::min(room_us / cost_.gpu_token_us, 1e15))));
      }
      for (int64_t copied = from; copied <= to; ++copied) {
        if (!uncached_sums_.reachable(family.prefix, free_count, copied - fixed_tokens)) continue;
        const Times t = times(family, copied, stolen);
        if (t.cpu_us >= best_us || gpu_end_us(t, 1.0) >= best_us) continue;
        const double share = split_ ? best_share(t) : 0;
        const double makespan_us = std::max(t.cpu_us + share * split_cpu_us_, gpu_end_us(t, share));
        if (makespan_us >= best_us) continue;
        best_us = makespan_us;
        best = describe(family, free_count, copied - fixed_tokens, stolen, share);
      }
    }
  }

  Assignment describe(const Family& family, int32_t free_count, int64_t free_tokens, int64_t stolen_tokens,
                      double share) const {
    Assignment out;
    for (const int32_t i : uncached_sums_.members(family.prefix, free_count, free_tokens)) {
      out.copied.push_back(uncached_[i].id);
    }
    if (family.lightest >= 0) out.copied.push_back(uncached_[family.lightest].id);
    for (const int32_t i :
         cached_sums_.members(static_cast<int32_t>(cached_.size()), family.steals, stolen_tokens)) {
      out.stolen.push_back(cached_[i].id);
    }
    out.split = split_;
    out.cpu_share = share;
    out.piece = piece_;
    return out;
  }

  const CostModel& cost_;
  const double shared_us_;
  const std::optional<Split> split_;
  const bool piece_;  // the divided expert is copied in part, after `copies` whole ones
  const std::vector<Expert> cached_, uncached_;
  const SubsetSums cached_sums_, uncached_sums_;
  double split_cpu_us_ = 0, split_gpu_us_ = 0;
};

void write_plan(const SplitRequest& request, const ActiveExperts& active, const Assignment& assignment,
                Plan& plan) {
  plan.clear();
  const std::set<int32_t> copied(assignment.copied.begin(), assignment.copied.end());
  const std::set<int32_t> stolen(assignment.stolen.begin(), assignment.stolen.end());
  const auto is_split = [&](int32_t id) { return assignment.split && assignment.split->expert.id == id; };
  std::vector<std::pair<double, int32_t>> arrivals;  // GPU time, id
  const auto place = [&](const Expert& e, bool on_cpu, bool arrives) {
    const double cpu_share = is_split(e.id) ? assignment.cpu_share : on_cpu ? 1.0 : 0.0;
    if (cpu_share > 0) {
      plan.cpu.push_back(e.id);
      plan.cpu_fraction.push_back(cpu_share);
    }
    if (cpu_share == 1.0 || (assignment.piece && is_split(e.id))) return;
    if (arrives) {
      const double part_us = is_split(e.id) ? request.cost.gpu_part_us : 0;
      arrivals.emplace_back((1 - cpu_share) * request.cost.gpu_us(e.load) + part_us, e.id);
    } else {
      plan.gpu.push_back(e.id);
    }
  };
  for (const Expert& e : active.uncached) place(e, !copied.contains(e.id), true);
  for (const Expert& e : active.cached) place(e, stolen.contains(e.id), false);
  std::stable_sort(arrivals.begin(), arrivals.end(),
                   [](const auto& a, const auto& b) { return a.first > b.first; });
  for (const auto& [us, id] : arrivals) plan.copy.push_back(id);
  plan.copy_fraction.assign(plan.copy.size(), 1.0);
  if (assignment.piece && assignment.split && assignment.cpu_share < 1) {
    plan.copy.push_back(assignment.split->expert.id);
    plan.copy_fraction.push_back(1 - assignment.cpu_share);
  }
  plan.gpu.insert(plan.gpu.end(), plan.copy.begin(), plan.copy.end());
}

}  // namespace

double exact(const SplitRequest& request, const ActiveExperts& active, Plan& plan) {
  BalancedScratch scratch;
  SplitRequest free_copies = request;
  free_copies.copy_price = 0;
  double best_us = balanced(free_copies, active, scratch, plan);
  std::optional<Assignment> best;
  const Relaxation relaxation(request, active);
  std::vector<double> bounds;
  for (int32_t k = 0; k <= static_cast<int32_t>(active.uncached.size()); ++k)
    bounds.push_back(relaxation.bound(k));

  // Equal experts on the same side are interchangeable: one split of each kind.
  std::vector<std::optional<Split>> splits{std::nullopt};
  if (request.allow_fraction) {
    for (const bool cached : {true, false}) {
      std::set<int32_t> seen;
      for (const Expert& e : cached ? active.cached : active.uncached) {
        if (seen.insert(e.load).second) splits.emplace_back(Split{e, cached});
      }
    }
  }
  for (const std::optional<Split>& split : splits) {
    const auto hopeless = [&](double bound) { return bound >= best_us * (1 - kTolerance); };
    if (split && std::all_of(bounds.begin(), bounds.end(), hopeless)) break;
    Enumeration enumeration(request, active, split);
    for (size_t k = 0; k < bounds.size(); ++k) {
      if (hopeless(bounds[k]) && !(!split && k + 1 == bounds.size()))
        continue;  // all on the GPU is outside the bound
      Assignment found;
      const double before_us = best_us;
      enumeration.improve(static_cast<int32_t>(k), bounds[k], best_us, found);
      if (best_us < before_us) best = found;
    }
  }
  if (best) write_plan(request, active, *best, plan);
  return best_us;
}

}  // namespace moerun::policy
