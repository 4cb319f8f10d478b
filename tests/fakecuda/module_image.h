// Images of kernels: ASCII lines of "key value". A line "function NAME" begins a kernel; the lines behind it,
// up to the next, are its properties. Lines before the first function belong to all of them.
#pragma once
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "tests/fakecuda/emulator.h"

namespace fakecuda {

struct Kernel {
  std::string name;
  Launch::Properties properties;
  const Emulator* emulator = nullptr;
  void* context = nullptr;
  unsigned shared_limit = 48 * 1024;  // bytes; raised by cuFuncSetAttribute
};

// Empty if the image is none, or names a kernel without an emulator.
std::vector<std::shared_ptr<Kernel>> read_image(const std::string& image, void* context);

}  // namespace fakecuda
