// What the C++ tests of the GPU path share: the stand-in driver's interface, ways to say what is wrong, and
// groups of tests that a program runs by name. Each program (cuda_test.cc, hybrid_test.cc) is one translation
// unit or several; MOERUN_LIBCUDA names the stand-in.
#pragma once
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <vector>

namespace moerun {

inline int failures = 0;

inline void expect(bool condition, const std::string& what) {
  if (condition) return;
  ++failures;
  std::printf("wrong: %s\n", what.c_str());
}

// The functions of tests/fakecuda/fakecuda.h, in the library that open_driver() opens.
struct StandIn {
  template <class Function>
  static Function* find(const char* name) {
    static void* const library = dlopen(std::getenv("MOERUN_LIBCUDA"), RTLD_NOW | RTLD_LOCAL);
    void* const address = library ? dlsym(library, name) : nullptr;
    if (address == nullptr) throw std::runtime_error(std::string("the stand-in driver lacks ") + name);
    return reinterpret_cast<Function*>(address);
  }
  void (*fail)(const char*, int64_t, int) = find<void(const char*, int64_t, int)>("fakecuda_fail");
  const char* (*failed)() = find<const char*()>("fakecuda_failed");
  int64_t (*calls)(const char*) = find<int64_t(const char*)>("fakecuda_calls");
  int64_t (*counter)(const char*) = find<int64_t(const char*)>("fakecuda_counter");
  int64_t (*leaks)() = find<int64_t()>("fakecuda_leaks");
  const char* (*violation)(int64_t) = find<const char*(int64_t)>("fakecuda_violation");
  void (*reset)() = find<void()>("fakecuda_reset");
};

inline const StandIn& fake() {
  static const StandIn interface;
  return interface;
}

// Everything was given back, and nothing was done that a real driver would not notice.
inline void expect_clean(const std::string& after) {
  expect(fake().leaks() == 0, std::to_string(fake().leaks()) + " leaks after " + after);
  const char* const violation = fake().violation(0);
  expect(violation == nullptr, after + ": " + (violation ? violation : ""));
}

// A variable of the environment, for the stand-in, until the end of the scope.
class Setting {
 public:
  Setting(const char* name, const std::string& value) : name_(name) {
    setenv(name, value.c_str(), 1);
    fake().reset();
  }
  ~Setting() {
    unsetenv(name_);
    fake().reset();
  }
  Setting(const Setting&) = delete;
  Setting& operator=(const Setting&) = delete;

 private:
  const char* name_;
};

// `action` must throw an Error whose message contains all `parts`.
template <class Error>
void expect_throw(const std::function<void()>& action, const std::string& what,
                  const std::vector<std::string>& parts = {}) {
  try {
    action();
  } catch (const Error& error) {
    for (const std::string& part : parts)
      expect(std::string(error.what()).find(part) != std::string::npos,
             what + ": '" + part + "' is not in: " + error.what());
    return;
  } catch (const std::exception& error) {
    expect(false, what + " threw another exception: " + error.what());
    return;
  }
  expect(false, what + " threw nothing");
}

struct Group {
  const char* name;
  std::function<void()> run;
};

// What main() returns: 0 if all is good, 1 if not, 2 if there is no such group.
inline int run_group(const std::string& name, std::initializer_list<Group> groups) {
  for (const Group& group : groups) {
    if (name != group.name) continue;
    try {
      group.run();
    } catch (const std::exception& error) {
      expect(false, std::string("an exception came out: ") + error.what());
    }
    std::printf(failures ? "failed\n" : "all good\n");
    return failures ? 1 : 0;
  }
  std::printf("there is no group %s\n", name.c_str());
  return 2;
}

}  // namespace moerun
