#include "src/policy/window.h"

namespace moerun::policy {

SortedLoads::Window SortedLoads::at_least(int32_t count, double target) const {
  const int32_t last = size() - count;
  int32_t low = 0, high = last;  // the last begin whose plain window reaches the target
  while (low < high) {
    const int32_t mid = (low + high + 1) / 2;
    if (static_cast<double>(plain(mid, count).sum) >= target) {
      low = mid;
    } else {
      high = mid - 1;
    }
  }
  if (low == last || count == 0) return plain(low, count);
  const int32_t begin = low;
  low = begin, high = begin + count;  // the first hole, from the heavy end, that still reaches it
  while (low < high) {
    const int32_t mid = (low + high) / 2;
    if (static_cast<double>(with_hole(begin, count, mid).sum) >= target) {
      high = mid;
    } else {
      low = mid + 1;
    }
  }
  return with_hole(begin, count, low);
}

SortedLoads::Window SortedLoads::next(const Window& w) const {
  if (w.count == 0) return w;
  if (w.hole > w.begin && w.begin + w.count < size()) return with_hole(w.begin, w.count, w.hole - 1);
  if (w.begin + w.count < size()) {  // the hole has reached the heavy end: the plain window one further
    return w.begin + 1 + w.count < size() ? with_hole(w.begin + 1, w.count, w.begin + w.count)
                                          : plain(w.begin + 1, w.count);
  }
  return w;
}

}  // namespace moerun::policy
