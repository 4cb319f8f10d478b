#include "src/expert_store/host_blobs.h"

#include <cstdlib>
#include <new>
#include <utility>

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

std::shared_ptr<HostBlobs> HostBlobs::in_place(const cuda::ContextPtr& context, const BlobLayout& layout,
                                               const std::byte* first, int64_t count,
                                               std::shared_ptr<void> owner) {
  constexpr uintptr_t kPage = 4096;
  const auto begin = reinterpret_cast<uintptr_t>(first);
  const uintptr_t from = begin / kPage * kPage,
                  to = (begin + count * layout.bytes + kPage - 1) / kPage * kPage;
  std::shared_ptr<HostBlobs> blobs(new HostBlobs(layout));
  blobs->owner_ = std::move(owner);
  blobs->data_ = const_cast<std::byte*>(first);
  using Access = cuda::RegisteredMemory::Access;
  // Files can be locked for reading only; some drivers cannot do that, but lock anonymous memory for both.
  for (const Access access : {Access::read_only, Access::read_write}) {
    blobs->registered_ = cuda::RegisteredMemory::try_register(context, reinterpret_cast<void*>(from),
                                                              to - from, access, blobs->why_not_);
    if (blobs->registered_) return blobs;
  }
  return nullptr;
}

}  // namespace moerun
