#include "src/expert_store/host_blobs.h"

#include <cstdlib>
#include <new>

#include "cuda/driver_error.h"
#include "src/error.h"

namespace moerun {

void HostBlobs::Free::operator()(std::byte* p) const {
  std::free(p);
}

HostBlobs::HostBlobs(const cuda::ContextPtr& context, const BlobLayout& layout, int64_t count, bool pin)
    : layout_(layout) {
  const int64_t bytes = count * layout.bytes;
  if (pin) {
    try {
      pinned_.emplace(context, bytes);
      data_ = static_cast<std::byte*>(pinned_->data());
      return;
    } catch (const GpuError& error) {
      if (cuda::is_sticky(error.code)) throw;
      why_not_ = error.what();
    }
  } else {
    why_not_ = "it was not asked for";
  }
  pageable_.reset(static_cast<std::byte*>(std::aligned_alloc(kBlobAlignment, bytes)));
  if (!pageable_) throw std::bad_alloc();
  data_ = pageable_.get();
}

}  // namespace moerun
