// One file of a checkpoint, mapped read-only. Experts in bf16, fp16 and fp32 are computed from these bytes in
// place. Made by python/bindings after python/moerun/checkpoint has validated the file's header; knows
// nothing of tensors.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace moerun {

// Owns the mapping, not the file: it may be renamed or deleted, but not shortened, while the mapping lives
// (the kernel answers a read of a page that is gone with SIGBUS).
class MappedFile {
 public:
  // Throws FileError if the file cannot be opened or mapped, is not a regular file, or is not expected_bytes
  // long: then it has changed since its header was read.
  MappedFile(std::string path, uint64_t expected_bytes);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::byte* data() const { return data_; }
  uint64_t size() const { return size_; }
  const std::string& path() const { return path_; }

  // Asks the kernel to start reading a part of the file into memory, and returns without waiting for it.
  // Throws InvalidArgument if the part is not inside of the file.
  void prefetch(uint64_t offset, uint64_t bytes) const;

 private:
  std::string path_;
  std::byte* data_ = nullptr;  // [size_], null after a move
  uint64_t size_ = 0;
};

}  // namespace moerun
