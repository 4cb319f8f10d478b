// A tiny OpenMP runtime: the three functions that cpu/team.cc calls, on std::thread. ThreadSanitizer sees
// what it does, which it cannot for libgomp. FAKE_OPENMP_MOST limits the threads of a region, as a busy
// runtime may.
#include <cstdlib>
#include <thread>
#include <vector>

namespace {
thread_local int number = 0;
thread_local int count = 1;
}  // namespace

extern "C" {

void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned) {
  if (const char* most = std::getenv("FAKE_OPENMP_MOST"))
    if (const unsigned limit = std::strtoul(most, nullptr, 10); limit < threads) threads = limit;
  const int outer_number = number, outer_count = count;
  const auto run = [=](unsigned me) {
    number = static_cast<int>(me);
    count = static_cast<int>(threads);
    body(data);
  };
  std::vector<std::thread> others;
  for (unsigned t = 1; t < threads; ++t) others.emplace_back(run, t);
  run(0);
  for (std::thread& other : others) other.join();
  number = outer_number;
  count = outer_count;
}

int omp_get_thread_num() {
  return number;
}
int omp_get_num_threads() {
  return count;
}

}  // extern "C"
