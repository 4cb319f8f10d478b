// The mapping itself: open, check, map, close. The file descriptor does not outlive the constructor.
#include "src/expert_store/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

#include "src/error.h"

namespace moerun {
namespace {

// Linux reads at most the device's largest request per call and ignores the rest
// (force_page_cache_readahead); 128 KiB is its default readahead, which every device takes.
constexpr uint64_t kReadaheadBytes = 128 << 10;

FileError error(const std::string& path, const std::string& what, int code) {
  return FileError(path + ": cannot " + what + ": " + std::generic_category().message(code));
}

// Closes on every way out of the constructor.
struct Descriptor {
  int fd;
  ~Descriptor() { close(fd); }
};

}  // namespace

MappedFile::MappedFile(std::string path, uint64_t expected_bytes) : path_(std::move(path)) {
  // O_NONBLOCK: a named pipe must fail below, not wait for a writer.
  const Descriptor file{open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  if (file.fd < 0) throw error(path_, "open", errno);
  struct stat status;
  if (fstat(file.fd, &status) != 0) throw error(path_, "read the size", errno);
  if (!S_ISREG(status.st_mode))
    throw FileError(path_ + ": expected a regular file, found a directory, pipe or device");
  size_ = static_cast<uint64_t>(status.st_size);
  if (size_ != expected_bytes) {
    throw FileError(path_ + ": expected " + std::to_string(expected_bytes) + " bytes, found " +
                    std::to_string(size_) +
                    ": the file was changed after its header was read. Open the checkpoint again");
  }
  if (size_ == 0) throw FileError(path_ + ": expected a file with content, found an empty one");
  // Shared: these are the page cache's own pages. Private would mean the same until the first write, and
  // there is none.
  void* data = mmap(nullptr, size_, PROT_READ, MAP_SHARED, file.fd, 0);
  if (data == MAP_FAILED) throw error(path_, "map", errno);
  data_ = static_cast<std::byte*>(data);
  // Fewer TLB misses where the file system has large pages for file data; elsewhere an error without effect.
  madvise(data_, size_, MADV_HUGEPAGE);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(data_, size_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

void MappedFile::prefetch(uint64_t offset, uint64_t bytes) const {
  if (offset > size_ || bytes > size_ - offset) {
    throw InvalidArgument("prefetch of " + std::to_string(bytes) + " bytes at " + std::to_string(offset) +
                          ", but " + path_ + " has " + std::to_string(size_) + "; pass a part of the file");
  }
  const uint64_t page_bytes = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  const uint64_t end = offset + bytes;
  for (uint64_t at = offset - offset % page_bytes; at < end; at += kReadaheadBytes) {
    // A hint: the kernel may be out of memory or the file system without readahead, and reading still works.
    madvise(data_ + at, std::min(kReadaheadBytes, end - at), MADV_WILLNEED);
  }
}

}  // namespace moerun
