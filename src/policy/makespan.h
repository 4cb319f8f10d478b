// The makespan of an assignment from counts and sums alone, in O(1), whole or with one expert split. For
// `balanced`.
//
// X are the copied experts, S the cached ones that the CPU takes, k = |X|, x = copy_us; c(n) = a + b n and
// g(n) = p + q n are the times of an expert with load n on the CPU and on the GPU.
//   CPU   T_C = first + sum of c over (uncached \ X) and S
//   GPU   T_G = max(A + G(X), x + G(X), k x + min g over X),  A = shared + sum of g over (cached \ S), G(X) =
//   sum of g
// T_G is exact, not a bound: copies and GPU form a two-machine flow shop, which Johnson's rule solves (cached
// experts first, then the copied ones, longest on the GPU first). Its longest path runs through i copies and
// the experts from the i-th on, i x + g_i + ... + g_k; as g falls along the order, this is largest for i = 1
// or i = k.
#pragma once
#include <cstdint>

#include "src/policy/plan.h"
#include "src/policy/window.h"

namespace moerun::policy {

// What the makespan depends on.
struct Sets {
  int32_t copied = 0;
  int64_t copied_tokens = 0;
  int32_t lightest_copied = 0;  // a load; of no meaning without copies
  int32_t stolen = 0;
  int64_t stolen_tokens = 0;
};

// Which expert is divided: none, a resident one, a copied one, or one of which only the GPU's part is copied,
// after the whole ones. With partial_copy `piece` takes the place of `copied`; Sets does not count it as
// copied.
enum class SplitSide : uint8_t { none, cached, copied, piece };

class Makespan {
 public:
  Makespan(const SplitRequest& request, const SortedLoads& cached, const SortedLoads& uncached)
      : cost_(request.cost),
        shared_us_(request.shared_gpu_us),
        partial_copy_(request.partial_copy),
        price_us_(request.copy_price * request.cost.copy_us),
        share_step_(request.share_step),
        cached_(cached),
        uncached_(uncached) {}

  struct Ends {
    double cpu_us, gpu_us;
  };
  Ends whole(const Sets& sets) const;

  // What the objective charges for `copies` experts (of a piece, the GPU's share) beside the makespan.
  double price_us(double copies) const { return copies * price_us_; }

  // One expert with this load is divided, at the cost of a part on each side, where T_C, rising with the
  // CPU's share, meets T_G, falling: with a price or without, the best share is that or none at all, for the
  // objective is convex in it and linear on either side. cpu_share is 0 where that helps nothing.
  struct Shared {
    double cpu_share, objective_us;
  };
  Shared divide(const Sets& sets, SplitSide side, int32_t load) const;

  double cpu_sum_us(int64_t experts, int64_t tokens) const {
    if (experts == 0) return 0;
    return cost_.cpu_first_us + static_cast<double>(experts) * cost_.cpu_expert_us +
           static_cast<double>(tokens) * cost_.cpu_token_us;
  }
  double gpu_sum_us(int64_t experts, int64_t tokens) const {
    return static_cast<double>(experts) * cost_.gpu_expert_us +
           static_cast<double>(tokens) * cost_.gpu_token_us;
  }

  // The most by which a divided expert can beat the better one of the whole assignments next to it: its GPU
  // time, or for a piece with share s, which costs s (x + g) there and saves s c here, c (x + g) / (c + x +
  // g).
  double division_gain_us() const;

 private:
  Shared divide_piece(const Sets& sets, int32_t load) const;
  template <class Objective>
  Shared at_steps(double crossing, Objective&& objective_us) const;

  const CostModel& cost_;
  const double shared_us_;
  const bool partial_copy_;
  const double price_us_;  // of one copy
  const double share_step_;
  const SortedLoads& cached_;
  const SortedLoads& uncached_;
};

}  // namespace moerun::policy
