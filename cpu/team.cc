#include "cpu/team.h"

#include <dlfcn.h>
#include <link.h>
#include <pthread.h>

#include <atomic>
#include <filesystem>
#include <mutex>
#include <vector>

#include "src/error.h"

namespace moerun::cpu {
namespace {

// The part of GCC's OpenMP interface that a compiled `#pragma omp parallel` uses; LLVM's and Intel's runtimes
// have it too.
struct OpenMp {
  void (*parallel)(void (*body)(void*), void* data, unsigned threads, unsigned flags) = nullptr;
  int (*thread_number)() = nullptr;
  int (*thread_count)() = nullptr;
  std::string path;
};

std::string& hint() {
  static std::string path;
  return path;
}

bool is_openmp(const std::string& file) {
  const std::string name = std::filesystem::path(file).filename().string();
  return name.rfind("libgomp", 0) == 0 || name.rfind("libiomp", 0) == 0 || name.rfind("libomp", 0) == 0;
}

std::vector<std::string> loaded_runtimes() {
  std::vector<std::string> paths;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* out) {
        if (is_openmp(info->dlpi_name))
          static_cast<std::vector<std::string>*>(out)->push_back(info->dlpi_name);
        return 0;
      },
      &paths);
  return paths;
}

std::vector<std::string> hinted_runtimes() {
  std::vector<std::string> paths;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(hint(), ignored))
    if (is_openmp(entry.path())) paths.push_back(entry.path());
  return paths;
}

OpenMp open_runtime(const std::string& path) {
  OpenMp omp;
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);  // never closed: its threads outlive any team
  if (!library) return omp;
  omp.parallel = reinterpret_cast<decltype(omp.parallel)>(dlsym(library, "GOMP_parallel"));
  omp.thread_number = reinterpret_cast<decltype(omp.thread_number)>(dlsym(library, "omp_get_thread_num"));
  omp.thread_count = reinterpret_cast<decltype(omp.thread_count)>(dlsym(library, "omp_get_num_threads"));
  omp.path = path;
  if (!omp.thread_number || !omp.thread_count) omp.parallel = nullptr;
  return omp;
}

// torch's, if it is loaded; else any that is loaded; else torch's from its folder; else the system's.
OpenMp find_runtime() {
  std::vector<std::string> candidates;
  const auto loaded = loaded_runtimes(), hinted = hinted_runtimes();
  for (const auto& path : loaded)
    if (!hint().empty() && path.rfind(hint(), 0) == 0) candidates.push_back(path);
  candidates.insert(candidates.end(), loaded.begin(), loaded.end());
  candidates.insert(candidates.end(), hinted.begin(), hinted.end());
  candidates.push_back("libgomp.so.1");
  for (const auto& path : candidates)
    if (OpenMp omp = open_runtime(path); omp.parallel) return omp;
  return {};
}

const OpenMp& runtime() {
  static const OpenMp omp = find_runtime();
  return omp;
}

std::atomic<int> generation{0};
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { generation.fetch_add(1); });

}  // namespace

Team::Team(int threads) : threads_(threads) {
  if (threads < 1) throw InvalidArgument("cpu_threads must be at least 1, got " + std::to_string(threads));
  if (threads > 1 && !runtime().parallel)
    throw InvalidState(
        "cpu_threads is " + std::to_string(threads) +
        ", but no OpenMP runtime was found; install torch or the system's libgomp1, or use cpu_threads=1");
}

void Team::run_erased(void (*call)(void*, Member), void* body) const {
  if (threads_ == 1) return call(body, Member{0, 1});
  struct Region {
    void (*call)(void*, Member);
    void* body;
  } region{call, body};
  runtime().parallel(
      [](void* data) {
        const auto* r = static_cast<const Region*>(data);
        r->call(r->body, Member{runtime().thread_number(), runtime().thread_count()});
      },
      &region, static_cast<unsigned>(threads_), 0);
}

std::string openmp_runtime() {
  return runtime().parallel ? runtime().path : "none found";
}

void set_openmp_hint(const std::string& path) {
  hint() = path;
}

int fork_generation() {
  return generation.load(std::memory_order_relaxed);
}

}  // namespace moerun::cpu
