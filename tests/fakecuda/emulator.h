// What a kernel is on the stand-in driver: a CPU function that is called once for a whole launch, in the
// thread of the stream. It reaches memory through Launch alone, which finds what a real device would not
// allow, or would do differently every time.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace fakecuda {

// Ends a kernel as the hardware would; the driver then reports `code` for ever.
struct KernelFault : std::runtime_error {
  KernelFault(int code, const std::string& text) : std::runtime_error(text), code(code) {}
  int code;
};

struct Dimensions {
  unsigned x = 1, y = 1, z = 1;
};

// Where accesses of a kernel go: checks them, and returns the bytes.
struct MemoryAccess {
  std::function<const std::byte*(uint64_t address, int64_t bytes)> read;
  std::function<std::byte*(uint64_t address, int64_t bytes)> write;
};

class Launch {
 public:
  using Properties = std::map<std::string, std::string>;  // of the image

  Launch(Dimensions grid, Dimensions block, const Properties& properties,
         const std::vector<std::vector<std::byte>>& parameters, const MemoryAccess& memory)
      : grid(grid), block(block), properties_(properties), parameters_(parameters), memory_(memory) {}

  const Dimensions grid, block;

  // A parameter's value, of exactly its size.
  template <class T>
  T parameter(size_t index) const {
    T value;
    if (parameters_.at(index).size() != sizeof(T)) throw std::logic_error("a parameter has another size");
    std::memcpy(&value, parameters_[index].data(), sizeof(T));
    return value;
  }
  uint64_t pointer(size_t index) const { return parameter<uint64_t>(index); }

  const std::string& property(const std::string& key) const { return properties_.at(key); }
  int64_t number(const std::string& key) const { return std::stoll(property(key)); }

  // `count` elements at a device address, or in pinned memory.
  template <class T>
  const T* read(uint64_t address, int64_t count) const {
    check_alignment(address, alignof(T));
    return reinterpret_cast<const T*>(memory_.read(address, count * int64_t{sizeof(T)}));
  }
  template <class T>
  T* write(uint64_t address, int64_t count) const {
    check_alignment(address, alignof(T));
    return reinterpret_cast<T*>(memory_.write(address, count * int64_t{sizeof(T)}));
  }

 private:
  static void check_alignment(uint64_t address, size_t alignment) {
    constexpr int kMisaligned = 716;
    if (address % alignment != 0) throw KernelFault(kMisaligned, "a misaligned address");
  }

  const Properties& properties_;
  const std::vector<std::vector<std::byte>>& parameters_;
  const MemoryAccess& memory_;
};

struct Emulator {
  std::string function;
  std::vector<uint32_t> parameter_bytes;  // without scratch pointers
  void (*run)(const Launch&);
};

// Null if there is none of that name.
const Emulator* find_emulator(const std::string& function);

}  // namespace fakecuda
