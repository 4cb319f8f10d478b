#include "tests/fakecuda/options.h"

#include <cstdlib>

namespace fakecuda {
namespace {

std::string text(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

int64_t number(const char* name, int64_t otherwise) {
  const std::string value = text(name);
  return value.empty() ? otherwise : std::strtoll(value.c_str(), nullptr, 10);
}

}  // namespace

Options read_options() {
  Options o;
  o.devices = static_cast<int>(number("FAKECUDA_DEVICES", o.devices));
  constexpr int kNoDevice = 100;
  o.init_result = static_cast<int>(number("FAKECUDA_INIT", o.devices > 0 ? 0 : kNoDevice));
  o.driver_version = static_cast<int>(number("FAKECUDA_DRIVER_VERSION", o.driver_version));
  o.compute = static_cast<int>(number("FAKECUDA_COMPUTE", o.compute));
  o.image_compute = static_cast<int>(number("FAKECUDA_IMAGE_COMPUTE", o.compute));
  o.memory_bytes = number("FAKECUDA_MEMORY", o.memory_bytes);
  o.pinned_bytes = number("FAKECUDA_PINNED", o.pinned_bytes);
  const std::string pinning = text("FAKECUDA_REGISTER");
  o.can_register = pinning != "none";
  o.can_register_read_only = pinning.empty();
  o.scratch_pointers = static_cast<int>(number("FAKECUDA_SCRATCH", o.scratch_pointers));
  o.connections = static_cast<int>(number("FAKECUDA_CONNECTIONS", o.connections));
  o.h2d_bytes_per_s = number("FAKECUDA_H2D_BYTES_PER_S", 0);
  o.d2h_bytes_per_s = number("FAKECUDA_D2H_BYTES_PER_S", 0);
  const std::string shake = text("FAKECUDA_SHAKE");
  const size_t colon = shake.find(':');
  if (colon != std::string::npos) {
    o.shake_seed = std::strtoull(shake.c_str(), nullptr, 10);
    o.shake_us = std::strtoll(shake.c_str() + colon + 1, nullptr, 10);
  }
  o.fail = text("FAKECUDA_FAIL");
  return o;
}

}  // namespace fakecuda
