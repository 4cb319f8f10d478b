#include "tests/fakecuda/module_image.h"

#include <sstream>

namespace fakecuda {

std::vector<std::shared_ptr<Kernel>> read_image(const std::string& image, void* context) {
  std::vector<std::shared_ptr<Kernel>> kernels;
  Launch::Properties shared;
  std::istringstream lines(image);
  for (std::string line; std::getline(lines, line);) {
    const size_t space = line.find(' ');
    if (space == std::string::npos) return {};
    const std::string key = line.substr(0, space), value = line.substr(space + 1);
    if (key == "function") {
      const Emulator* emulator = find_emulator(value);
      if (emulator == nullptr) return {};
      kernels.push_back(std::make_shared<Kernel>(
          Kernel{.name = value, .properties = shared, .emulator = emulator, .context = context}));
    }
    (kernels.empty() ? shared : kernels.back()->properties)[key] = value;
  }
  return kernels;
}

}  // namespace fakecuda
