#include "src/dma_queue/staging.h"

#include <algorithm>
#include <cstring>

namespace moerun {

Staging::Staging(const cuda::ContextPtr& context) {
  for (int i = 0; i < kPieces; ++i)
    pieces_.push_back({cuda::PinnedMemory(context, kPieceBytes), cuda::Event(context)});
}

void Staging::copy_to_device(const cuda::StreamView& stream, cuda::DevicePtr to, const std::byte* from,
                             int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += kPieceBytes) {
    Piece& piece = pieces_[next_];
    next_ = (next_ + 1) % pieces_.size();
    piece.copied.synchronize();
    const int64_t n = std::min(kPieceBytes, bytes - at);
    std::memcpy(piece.memory.data(), from + at, n);
    stream.copy_to_device(to + at, piece.memory.data(), n);
    stream.record(piece.copied);
  }
}

}  // namespace moerun
