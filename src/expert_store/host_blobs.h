// The experts of one layer in host memory, one contiguous blob each (blob_layout.h), page-locked so that the
// GPU copies them at full speed: what a layer with a GPU is made into when it is added. CPU kernels read the
// same bytes. Blobs that lie behind each other already (quantised experts, a mapped file) are page-locked
// where they lie; all others get memory of their own.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "cuda/handles.h"
#include "src/expert_store/blob_layout.h"

namespace moerun {

class HostBlobs {
 public:
  // Room for `count` blobs. With `pin`, tries to allocate it page-locked; where the system refuses, takes
  // ordinary memory and says why in why_not_pinned(). Throws std::bad_alloc, or GpuError if the GPU is lost.
  HostBlobs(const cuda::ContextPtr& context, const BlobLayout& layout, int64_t count, bool pin);

  // Blobs that others made, page-locked where they lie; null if the system refuses. `owner` keeps them alive,
  // and nobody may write to them. Throws GpuError if the GPU is lost.
  static std::shared_ptr<HostBlobs> in_place(const cuda::ContextPtr& context, const BlobLayout& layout,
                                             const std::byte* first, int64_t count,
                                             std::shared_ptr<void> owner);

  std::byte* blob(int64_t expert) { return data_ + expert * layout_.bytes; }
  const BlobLayout& layout() const { return layout_; }
  bool pinned() const { return pinned_ || registered_; }
  const std::string& why_not_pinned() const { return why_not_; }

 private:
  struct Free {
    void operator()(std::byte* p) const;
  };
  explicit HostBlobs(const BlobLayout& layout) : layout_(layout) {}

  const BlobLayout layout_;
  std::shared_ptr<void> owner_;  // of registered_
  std::optional<cuda::RegisteredMemory> registered_;
  std::optional<cuda::PinnedMemory> pinned_;
  std::unique_ptr<std::byte, Free> pageable_;
  std::byte* data_ = nullptr;
  std::string why_not_;
};

}  // namespace moerun
