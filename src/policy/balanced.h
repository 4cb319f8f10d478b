// Our scheduler: an assignment of a layer's active experts to CPU, GPU and PCIe within a proven distance of
// the optimum, in O(E log E); never behind HybriMoE's greedy (it is among the candidates). Notation and the
// makespan: makespan.h.
//
// Method. With k = |X| and s = |S| fixed, the makespan depends on the sets only through D = tokens of X -
// tokens of S (and the lightest of X): T_C falls by b and T_G grows by q per token. So for every (k, s) the
// best real D follows in closed form and gives a lower bound B(k, s), convex in s for fixed k; a walk over k
// with s following finds the pairs that matter. For these, D is met as closely as a chain of sets allows
// whose sums differ by one gap of the sorted loads at a time (window.h). Up to kFewExperts experts with
// unequal loads are enumerated (few.h).
//
// Bound, for whole experts. Whatever the k and s of the optimum, the least B(k, s) of all is <= OPT, and that
// pair is always tried. Two neighbours on its chain that straddle the best D differ by a gap d of
// neighbouring loads, so the better one has a makespan <= B + d b q / (b + q): beyond OPT by at most the
// smaller of the CPU and the GPU time of d tokens, and by nothing where all loads are equal, as in decode.
// Where the last copy is the longest path, add g(lightest copied) - g(lightest uncached), which is less than
// x there. (All on the GPU, which saves `first`, is tried apart.)
//
// Fraction. With allow_fraction one expert on the GPU, cached or copied, may hand a share of its intermediate
// dimension to the CPU. For fixed k the linear relaxation has one divided expert in its basic solutions, and
// moves along "X from heavy to light" and "S growing from one end of the list": so dividing the lightest or
// the heaviest expert of the GPU at the crossing of T_C and T_G closes what whole experts leave open. With
// partial_copy the number of copies is relaxed too: after k whole ones comes a piece of an expert whose rest
// the CPU runs, again the lightest or the heaviest one left.
#pragma once
#include <vector>

#include "src/policy/choice.h"
#include "src/policy/plan.h"
#include "src/policy/window.h"

namespace moerun::policy {

struct BalancedScratch {
  SortedLoads cached, uncached;
  std::vector<int32_t> best_steals;  // [k]: the s with the lowest B(k, s)
  std::vector<double> bounds;        // [k]: that B
  Choice choice;
};

// Writes plan.cpu, cpu_fraction, gpu and copy (not the intervals); returns the makespan and the price of the
// copies, which is what it minimises.
double balanced(const SplitRequest& request, const ActiveExperts& active, BalancedScratch& scratch,
                Plan& plan);

}  // namespace moerun::policy
