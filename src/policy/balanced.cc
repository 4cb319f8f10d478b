#include "src/policy/balanced.h"

#include <algorithm>

#include "src/policy/few.h"
#include "src/policy/hybrimoe.h"
#include "src/policy/makespan.h"

namespace moerun::policy {
namespace {

// How many steals to each side of the best one are tried for a number of copies (heuristic: more changed
// nothing).
constexpr int kStealsBeside = 3;
// After how many numbers of copies without a gain the search turns around. Without fractions the bounds end
// it sooner; with them they are loose by one expert's GPU time, and 128 experts would take longer than 10 us
// (heuristic).
constexpr int kPatience = 4;

using Window = SortedLoads::Window;

class Search {
 public:
  Search(const SplitRequest& request, BalancedScratch& scratch, double limit_us)
      : cost_(request.cost),
        shared_us_(request.shared_gpu_us),
        fraction_(request.allow_fraction),
        partial_copy_(request.partial_copy),
        cached_(scratch.cached),
        uncached_(scratch.uncached),
        makespan_(request, scratch.cached, scratch.uncached),
        scratch_(scratch),
        division_gain_us_(fraction_ ? makespan_.division_gain_us() : 0),
        best_us_(limit_us) {}

  // Fills the choice if something beats the limit.
  void run();

 private:
  struct Ideal {
    double bound_us;  // B(k, s), and the price of k copies
    double tokens;    // the D at which it is reached
  };

  Ideal ideal(int32_t copies, int32_t steals) const;
  int32_t walk(int32_t copies, int32_t steals) const;
  void try_copies(int32_t copies);
  void realise(int32_t copies, int32_t steals);
  void try_sets(const Window& copied, const Window& stolen);
  void keep(const Window& copied, const Window& stolen, SplitSide side, int32_t position, double share,
            double us);
  bool promising(double bound_us) const { return bound_us - division_gain_us_ < best_us_; }

  const CostModel& cost_;
  const double shared_us_;
  const bool fraction_;
  const bool partial_copy_;
  const SortedLoads& cached_;
  const SortedLoads& uncached_;
  const Makespan makespan_;
  BalancedScratch& scratch_;
  const double division_gain_us_;
  double best_us_;
  Window best_copied_, best_stolen_;
};

// The stolen experts have at least the tokens of the s lightest cached ones; so x + G(X), with the tokens of
// X written as D + tokens of S, bounds the GPU as A + G(X) does.
Search::Ideal Search::ideal(int32_t copies, int32_t steals) const {
  const int32_t u = uncached_.size(), r = cached_.size();
  const double b = cost_.cpu_token_us, q = cost_.gpu_token_us;
  const auto least = static_cast<double>(uncached_.lightest_sum(copies) - cached_.heaviest_sum(steals));
  const auto most = static_cast<double>(uncached_.heaviest_sum(copies) - cached_.lightest_sum(steals));
  const double cpu_us = makespan_.cpu_sum_us(u - copies + steals, uncached_.total());  // at D = 0
  double gpu_us = shared_us_ + makespan_.gpu_sum_us(r - steals + copies, cached_.total());
  double tail_us = 0;
  if (copies > 0) {
    gpu_us = std::max(gpu_us, cost_.copy_us + makespan_.gpu_sum_us(copies, cached_.lightest_sum(steals)));
    tail_us = copies * cost_.copy_us + cost_.gpu_us(uncached_.load(u - 1));
  }
  const double tokens = b + q > 0 ? std::clamp((cpu_us - gpu_us) / (b + q), least, most) : most;
  const double cpu_end_us = u - copies + steals == 0 ? 0 : cpu_us - b * tokens;
  return {std::max({cpu_end_us, gpu_us + q * tokens, tail_us}) + makespan_.price_us(copies), tokens};
}

// From `steals` downhill on the convex B(copies, .).
int32_t Search::walk(int32_t copies, int32_t steals) const {
  double here_us = ideal(copies, steals).bound_us;
  for (const int32_t step : {1, -1}) {
    while (steals + step >= 0 && steals + step <= cached_.size()) {
      const double there_us = ideal(copies, steals + step).bound_us;
      if (there_us >= here_us) break;
      here_us = there_us;
      steals += step;
    }
  }
  return steals;
}

void Search::run() {
  auto& bounds = scratch_.bounds;
  scratch_.best_steals.clear();
  bounds.clear();
  int32_t steals = 0, lowest = 0;
  const auto least_us = [&](int32_t copies) { return copies * cost_.copy_us + makespan_.price_us(copies); };
  for (int32_t k = 0; k <= uncached_.size() && (k == 0 || least_us(k) < best_us_); ++k) {
    steals = walk(k, steals);
    scratch_.best_steals.push_back(steals);
    bounds.push_back(ideal(k, steals).bound_us);
    if (bounds[k] < bounds[lowest]) lowest = k;
  }
  const auto reached = static_cast<int32_t>(bounds.size());
  // All on the GPU saves cpu_first_us: a jump that the walk does not see.
  if (reached == uncached_.size() + 1) try_sets(uncached_.heaviest(uncached_.size()), cached_.heaviest(0));
  // A piece after k whole copies lies between k and k + 1 of them.
  const auto worth_trying = [&](int32_t k) {
    if (!partial_copy_) return promising(bounds[k]);
    return k + 1 == reached || promising(std::min(bounds[k], bounds[k + 1]));
  };
  for (const int32_t step : {1, -1}) {
    int32_t idle = 0;
    for (int32_t k = step > 0 ? lowest : lowest - 1; k >= 0 && k < reached && idle < kPatience; k += step) {
      if (!worth_trying(k)) break;
      const double before_us = best_us_;
      try_copies(k);
      idle = best_us_ < before_us ? 0 : idle + 1;
    }
  }

  Choice& choice = scratch_.choice;
  for (int32_t i = 0; i < uncached_.size(); ++i) choice.copied[i] = SortedLoads::contains(best_copied_, i);
  for (int32_t i = 0; i < cached_.size(); ++i) choice.stolen[i] = SortedLoads::contains(best_stolen_, i);
}

void Search::try_copies(int32_t copies) {
  const int32_t middle = scratch_.best_steals[copies];
  realise(copies, middle);
  for (const int32_t step : {1, -1}) {
    for (int32_t i = 1, s = middle + step; i <= kStealsBeside && s >= 0 && s <= cached_.size();
         ++i, s += step) {
      if (!promising(ideal(copies, s).bound_us)) break;
      realise(copies, s);
    }
  }
}

// Meets the ideal D with the neighbours on both chains; with fractions also the ends of the chains.
void Search::realise(int32_t copies, int32_t steals) {
  const double tokens = ideal(copies, steals).tokens;
  Window copied = uncached_.at_least(copies, tokens + static_cast<double>(cached_.lightest_sum(steals)));
  for (int i = 0; i < 2; ++i) {
    const Window stolen = cached_.at_least(steals, static_cast<double>(copied.sum) - tokens);
    try_sets(copied, stolen);
    if (steals > 0) try_sets(copied, cached_.next(stolen));
    if (copies == 0) break;
    copied = uncached_.next(copied);
  }
  if (fraction_) {
    try_sets(uncached_.heaviest(copies), cached_.lightest(steals));
    try_sets(uncached_.lightest(copies), cached_.heaviest(steals));
  }
}

void Search::try_sets(const Window& copied, const Window& stolen) {
  Sets sets{copied.count, copied.sum, 0, stolen.count, stolen.sum};
  if (copied.count > 0) sets.lightest_copied = uncached_.load(SortedLoads::lightest_in(copied));
  const auto [cpu_us, gpu_us] = makespan_.whole(sets);
  const double price_us = makespan_.price_us(copied.count), whole_us = std::max(cpu_us, gpu_us) + price_us;
  if (whole_us < best_us_) keep(copied, stolen, SplitSide::none, 0, 1.0, whole_us);
  if (!fraction_) return;

  const auto try_to_divide = [&](SplitSide side, const SortedLoads& loads, int32_t position) {
    const auto [share, us] = makespan_.divide(sets, side, loads.load(position));
    if (share > 0 && us < best_us_) keep(copied, stolen, side, position, share, us);
  };
  if (gpu_us <= cpu_us) {
    if (!partial_copy_ || copied.count == uncached_.size() || gpu_us + price_us >= best_us_) return;
    try_to_divide(SplitSide::piece, uncached_, uncached_.lightest_outside(copied));
    try_to_divide(SplitSide::piece, uncached_, SortedLoads::heaviest_outside(copied));
    return;
  }
  if (cpu_us + price_us >= best_us_ || !promising(gpu_us + price_us)) return;
  if (stolen.count < cached_.size()) {
    try_to_divide(SplitSide::cached, cached_, cached_.lightest_outside(stolen));
    try_to_divide(SplitSide::cached, cached_, SortedLoads::heaviest_outside(stolen));
  }
  if (copied.count > 0 && !partial_copy_) {
    try_to_divide(SplitSide::copied, uncached_, SortedLoads::lightest_in(copied));
    try_to_divide(SplitSide::copied, uncached_, SortedLoads::heaviest_in(copied));
  }
}

void Search::keep(const Window& copied, const Window& stolen, SplitSide side, int32_t position, double share,
                  double us) {
  best_us_ = us;
  best_copied_ = copied;
  best_stolen_ = stolen;
  scratch_.choice.split = side;
  scratch_.choice.split_position = position;
  scratch_.choice.cpu_share = share;
  scratch_.choice.objective_us = us;
}

bool all_loads_equal(const SortedLoads& cached, const SortedLoads& uncached) {
  const int32_t heaviest = std::max(cached.heaviest_load(), uncached.heaviest_load());
  return (cached.size() == 0 || cached.load(cached.size() - 1) == heaviest) &&
         (uncached.size() == 0 || uncached.load(uncached.size() - 1) == heaviest);
}

}  // namespace

double balanced(const SplitRequest& request, const ActiveExperts& active, BalancedScratch& scratch,
                Plan& plan) {
  double greedy_us = hybrimoe(request, active, plan);
  greedy_us += request.copy_price * request.cost.copy_us * static_cast<double>(plan.copy.size());
  SortedLoads& cached = scratch.cached;
  SortedLoads& uncached = scratch.uncached;
  cached.assign(active.cached);
  uncached.assign(active.uncached);
  Choice& choice = scratch.choice;
  choice.copied.assign(active.uncached.size(), 0);
  choice.stolen.assign(active.cached.size(), 0);
  choice.objective_us = greedy_us;

  if (cached.size() + uncached.size() <= kFewExperts && !all_loads_equal(cached, uncached)) {
    choose_among_few(request, cached, uncached, greedy_us, choice);
  } else {
    Search(request, scratch, greedy_us).run();
  }
  if (choice.objective_us < greedy_us) write_plan(request.cost, cached, uncached, choice, plan);
  return choice.objective_us;
}

}  // namespace moerun::policy
