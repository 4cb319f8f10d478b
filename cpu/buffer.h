// Memory that only grows, aligned to cache lines: so that the hot path allocates nothing once it has seen its
// largest batch. One owner, one thread at a time.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace moerun::cpu {

class Buffer {
 public:
  // At least n bytes; what was in them is gone if they had to grow. Throws std::bad_alloc.
  void* at_least(int64_t n) {
    if (n > bytes_) {
      data_.reset(std::aligned_alloc(64, static_cast<size_t>(n + 63) / 64 * 64));
      bytes_ = data_ ? n : 0;
      if (!data_) throw std::bad_alloc();
    }
    return data_.get();
  }
  void* data() const { return data_.get(); }
  int64_t bytes() const { return bytes_; }

 private:
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  std::unique_ptr<void, Free> data_;
  int64_t bytes_ = 0;
};

}  // namespace moerun::cpu
