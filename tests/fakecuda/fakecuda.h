// A stand-in for NVIDIA's libcuda.so.1: the driver's functions that moerun calls, on the CPU, and this C
// interface for tests. It proves logic, never speed. Point MOERUN_LIBCUDA at it.
//
// Streams are threads, events real dependencies between them. An address on the device faults when the host
// dereferences it; the bytes behind it lie in a shadow. Device memory starts as NaN (0xFF bytes). Kernels are
// CPU functions found by name (emulator.h); an image is text, lines of "key value" with at least a line
// "function NAME" (python/moerun/kernels/contract.py writes such images).
//
// Environment, read at the start, by fakecuda_reset, and (but for FAKECUDA_FAIL) by cuInit where no context
// is:
//   FAKECUDA_DEVICES            number of devices (1)
//   FAKECUDA_INIT               what cuInit returns (0, or "no device" if there is none)
//   FAKECUDA_DRIVER_VERSION     1000 * major + 10 * minor (12080)
//   FAKECUDA_COMPUTE            compute capability, 10 * major + minor (90)
//   FAKECUDA_MEMORY             bytes of device memory (1 GiB)
//   FAKECUDA_PINNED             bytes of host memory that may be pinned (4 GiB)
//   FAKECUDA_REGISTER           "none": no memory of others can be pinned; "writable": none that is read-only
//   FAKECUDA_SCRATCH            scratch pointers that kernels have behind their own parameters (2)
//   FAKECUDA_IMAGE_COMPUTE      what kernels are compiled for; loading fails if it is not FAKECUDA_COMPUTE
//   FAKECUDA_CONNECTIONS        hardware queues that streams share, in turn (each has one of its own)
//   FAKECUDA_H2D_BYTES_PER_S, FAKECUDA_D2H_BYTES_PER_S   throttle (none)
//   FAKECUDA_SHAKE              "SEED:US": every operation of a stream starts up to US microseconds late
//   FAKECUDA_FAIL               "NAME:N:CODE,...": see fakecuda_fail
//
// What a program must not do, but a real driver would not notice or punish only now and then, is a
// *violation*: it is noted, and the program goes on. Tests expect none.
//   - two operations that touch the same bytes, one of them writing, without an event or a host's wait
//     between them (happens_before.h)
//   - a destroyed handle; a call without a current context; freeing memory that queued work will touch
//   - a stream that waits for a value that nobody writes; allocating, freeing or loading in a thread that
//     writes values, while a stream waits for one: the driver may wait for all streams first
#pragma once
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// The N-th call of NAME from now on (1 is the next) returns CODE and does nothing, except that what is to be
// released is released. NAME is an exported function, "*" for any of them, or "kernel": then the N-th kernel
// that runs faults. A sticky CODE is returned by every later call, until fakecuda_reset.
void fakecuda_fail(const char* name, int64_t n, int code);

// Says that a stream is being captured into a graph, or not any more. The handle must be of a stream.
void fakecuda_capture(void* stream, int active);

// The function that was made to fail last, or null.
const char* fakecuda_failed(void);

// Calls of NAME ("*": all) since the start or fakecuda_reset.
int64_t fakecuda_calls(const char* name);

// One of: launches, h2d_copies, h2d_bytes, d2h_copies, d2h_bytes, d2d_copies, d2d_bytes, unpinned_copies,
// violations; and what is alive now: contexts, streams, events, modules, device_allocations, device_bytes,
// pinned_allocations, registered. -1 for any other name.
int64_t fakecuda_counter(const char* name);

// What must be zero when everything was given back: the sum of what is alive now.
int64_t fakecuda_leaks(void);

// Text of a violation, or null. Valid until fakecuda_reset.
const char* fakecuda_violation(int64_t index);

// Waits for all streams, forgets failures, sticky errors, counters and violations, and reads the environment
// again. Handles and memory stay.
void fakecuda_reset(void);

#ifdef __cplusplus
}
#endif
