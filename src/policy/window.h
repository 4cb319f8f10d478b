// Choosing a given number of experts from a list sorted by load so that their loads add up to about a target,
// in O(log n): a window of neighbours with one hole. For `balanced`.
//
// For a list v[0] >= v[1] >= ... the sets {v[b..b+c]} minus one element, ordered by b and then by the hole
// from the light end to the heavy end, form a chain from the c heaviest to the c lightest in which the sum
// falls by one difference of neighbours, v[h] - v[h+1], at a time. So any target between the two ends is met
// within one such gap.
#pragma once
#include <cstdint>
#include <vector>

#include "src/policy/plan.h"

namespace moerun::policy {

class SortedLoads {
 public:
  // c of the list's experts: positions [begin, begin + count], except `hole`. A plain window has its hole at
  // the end.
  struct Window {
    int32_t begin = 0, count = 0, hole = 0;
    int64_t sum = 0;
  };

  void assign(const std::vector<Expert>& heaviest_first) {
    list_ = &heaviest_first;
    prefix_.assign(1, 0);
    for (const Expert& e : heaviest_first) prefix_.push_back(prefix_.back() + e.load);
  }

  int32_t size() const { return static_cast<int32_t>(prefix_.size()) - 1; }
  int64_t total() const { return prefix_.back(); }
  int32_t load(int32_t position) const { return (*list_)[position].load; }
  int32_t id(int32_t position) const { return (*list_)[position].id; }
  int32_t heaviest_load() const { return size() > 0 ? load(0) : 0; }
  int64_t heaviest_sum(int32_t count) const { return prefix_[count]; }
  int64_t lightest_sum(int32_t count) const { return prefix_[size()] - prefix_[size() - count]; }

  Window heaviest(int32_t count) const { return plain(0, count); }
  Window lightest(int32_t count) const { return plain(size() - count, count); }

  static bool contains(const Window& w, int32_t position) {
    return position >= w.begin && position <= w.begin + w.count && position != w.hole;
  }
  // Position of the lightest and of the heaviest expert in a window that is not empty.
  static int32_t lightest_in(const Window& w) {
    return w.begin + w.count - (w.hole == w.begin + w.count ? 1 : 0);
  }
  static int32_t heaviest_in(const Window& w) { return w.begin + (w.hole == w.begin ? 1 : 0); }

  // Position of the lightest and of the heaviest expert outside of a window that leaves some out.
  int32_t lightest_outside(const Window& w) const {
    const int32_t end = w.begin + w.count;
    return end < size() - 1 ? size() - 1 : end == size() - 1 ? w.hole : w.begin - 1;
  }
  static int32_t heaviest_outside(const Window& w) { return w.begin > 0 ? 0 : w.hole; }

  // The last window of the chain whose sum is >= target; the heaviest one if none is.
  Window at_least(int32_t count, double target) const;
  // The next window of the chain (lighter); the same one at its end.
  Window next(const Window& w) const;

 private:
  Window plain(int32_t begin, int32_t count) const {
    return {begin, count, begin + count, prefix_[begin + count] - prefix_[begin]};
  }
  Window with_hole(int32_t begin, int32_t count, int32_t hole) const {
    return {begin, count, hole, prefix_[begin + count + 1] - prefix_[begin] - load(hole)};
  }

  const std::vector<Expert>* list_ = nullptr;
  std::vector<int64_t> prefix_{0};
};

}  // namespace moerun::policy
