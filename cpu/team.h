// A team of threads that runs one function, the calling thread being thread 0 and computing too.
//
// The threads are OpenMP's, from the runtime that is already in the process: torch carries a libgomp whose
// threads spin for a while after each of torch's own regions, and a second pool beside it would fight them
// for the cores (measured in docs/architecture.md). So the team opens its regions through that very runtime,
// found when it is first needed. Without torch the system's libgomp serves.
#pragma once
#include <string>
#include <type_traits>

namespace moerun::cpu {

// One thread's place in a region. The runtime may give fewer threads than asked for (inside another region,
// say).
struct Member {
  int thread = 0;
  int size = 1;
};

class Team {
 public:
  // threads >= 1, the caller included. Throws InvalidState if more than one is asked for and there is no
  // OpenMP runtime.
  explicit Team(int threads);

  int size() const { return threads_; }

  // Runs body(member) on up to size() threads and returns when all are done. `body` must not throw.
  template <class Body>
  void run(Body&& body) const {
    static_assert(std::is_nothrow_invocable_v<Body&, Member>, "exceptions may not cross threads");
    run_erased([](void* b, Member m) { (*static_cast<std::remove_reference_t<Body>*>(b))(m); }, &body);
  }

 private:
  void run_erased(void (*call)(void*, Member), void* body) const;
  int threads_;
};

// The OpenMP runtime in use (a path), or why there is none. For doctor.
std::string openmp_runtime();

// Where to look for a runtime if none is loaded yet: torch's folder of libraries, known to Python without
// importing torch.
void set_openmp_hint(const std::string& path);

// How often this process is the child of a fork since the library was loaded; an engine belongs to one
// generation.
int fork_generation();

}  // namespace moerun::cpu
