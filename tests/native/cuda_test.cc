// The driver layer on the stand-in driver: what owners, streams, events and kernels do, and what they do when
// a call fails. test_cuda.py compiles it plain and under sanitizers. Argument: a group of tests. Prints what
// is wrong and returns 1.
#include "tests/native/cuda_groups.h"
#include "tests/native/stand_in.h"

int main(int, char** arguments) {
  using namespace moerun::cuda;
  return moerun::run_group(arguments[1], {{"owners", owners},
                                          {"order", order},
                                          {"refusals", refusals},
                                          {"failures", [] { each_call_fails(kNotSupported); }},
                                          {"sticky failures", [] { each_call_fails(kIllegalAddress); }},
                                          {"threads", many_threads},
                                          {"missing wait", a_missing_wait_is_found},
                                          {"early write", overwriting_too_early_is_found}});
}
