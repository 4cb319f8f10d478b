// The experts of one layer in host memory, one contiguous blob each (blob_layout.h), page-locked so that the
// GPU copies them at full speed: what a layer with a GPU is made into when it is added. CPU kernels read the
// same bytes.
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

  std::byte* blob(int64_t expert) { return data_ + expert * layout_.bytes; }
  const BlobLayout& layout() const { return layout_; }
  bool pinned() const { return pinned_.has_value(); }
  const std::string& why_not_pinned() const { return why_not_; }

 private:
  struct Free {
    void operator()(std::byte* p) const;
  };
  const BlobLayout layout_;
  std::optional<cuda::PinnedMemory> pinned_;
  std::unique_ptr<std::byte, Free> pageable_;
  std::byte* data_ = nullptr;
  std::string why_not_;
};

}  // namespace moerun
