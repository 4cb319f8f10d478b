// A few small pinned buffers through which memory that is not pinned reaches the device: pageable memory
// would make the driver copy synchronously. Used by the DMA queue, on the scheduler's thread, where pinning
// the experts themselves has failed.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "cuda/handles.h"

namespace moerun {

class Staging {
 public:
  static constexpr int64_t kPieceBytes = 2 << 20;  // copies of 64 KiB and more reach full speed (heuristic)
  static constexpr int kPieces = 4;

  explicit Staging(const cuda::ContextPtr& context);

  // The copy as pieces on `stream`. Waits in this thread for a free buffer; `from` may change as soon as this
  // returns.
  void copy_to_device(const cuda::StreamView& stream, cuda::DevicePtr to, const std::byte* from,
                      int64_t bytes);

 private:
  struct Piece {
    cuda::PinnedMemory memory;
    cuda::Event copied;
  };
  std::vector<Piece> pieces_;
  size_t next_ = 0;
};

}  // namespace moerun
