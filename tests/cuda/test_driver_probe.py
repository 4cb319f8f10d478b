"""Looking for a GPU: every way in which there may be none has its reason; what a driver tells comes through.

The drivers are stand-ins of a few lines, compiled here; real devices are the business of tests marked `gpu`.
"""

import shutil
import subprocess
import sysconfig

import pytest

from moerun import _core

DRIVER = """
#include <stddef.h>
#include <stdio.h>
#ifndef INIT_RESULT
#define INIT_RESULT 0
#endif
#ifndef DEVICES
#define DEVICES 2
#endif
int cuInit(unsigned flags) { return INIT_RESULT; }
int cuGetErrorName(int result, const char** name) {
  *name = result == 100 ? "CUDA_ERROR_NO_DEVICE" : NULL;
  return 0;
}
int cuDriverGetVersion(int* version) { *version = 12040; return 0; }
#ifndef TRUNCATED
int cuDeviceGetCount(int* count) { *count = DEVICES; return 0; }
int cuDeviceGet(int* device, int index) { *device = 7 + index; return 0; }
int cuDeviceGetName(char* name, int size, int device) {
  snprintf(name, size, "Stand-in %d", device);
  return 0;
}
int cuDeviceGetAttribute(int* value, int attribute, int device) {
  *value = attribute == 75 ? device + 1 : attribute == 76 ? 6 : -1;
  return 0;
}
int cuDeviceTotalMem_v2(size_t* bytes, int device) { *bytes = (size_t)device << 30; return 0; }
#endif
"""


@pytest.fixture
def probe(tmp_path, monkeypatch):
    """Compiles the stand-in with these macros, and probes it."""
    compiler = shutil.which((sysconfig.get_config_var("CC") or "cc").split()[0]) or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C compiler to build a stand-in driver with")

    def run(*macros):
        source, library = tmp_path / "driver.c", tmp_path / "libcuda.so.1"
        source.write_text(DRIVER)
        flags = [f"-D{macro}" for macro in macros]
        command = [compiler, "-x", "c", "-shared", "-fPIC", *flags, str(source), "-o", str(library)]
        subprocess.run(command, check=True)
        monkeypatch.setenv("MOERUN_LIBCUDA", str(library))
        return _core.probe_gpu()

    return run


def test_devices_come_with_name_capability_and_memory(probe):
    found = probe()
    assert found["reason"] == ""
    assert found["driver_version"] == 12040
    assert found["devices"] == [
        {"name": "Stand-in 7", "compute_capability": "8.6", "memory_bytes": 7 << 30},
        {"name": "Stand-in 8", "compute_capability": "9.6", "memory_bytes": 8 << 30},
    ]


def test_a_driver_without_a_device_says_so_with_its_own_error(probe):
    found = probe("INIT_RESULT=100")
    assert found["devices"] == []
    assert "cuInit" in found["reason"]
    assert "CUDA_ERROR_NO_DEVICE (100)" in found["reason"]


def test_an_error_without_a_name_keeps_its_number(probe):
    assert "(999)" in probe("INIT_RESULT=999")["reason"]


def test_a_driver_that_counts_no_devices(probe):
    found = probe("DEVICES=0")
    assert found["driver_version"] == 12040
    assert "no device" in found["reason"]


def test_a_library_that_lacks_functions_is_named_as_such(probe):
    assert "cuDeviceGetCount" in probe("TRUNCATED")["reason"]


def test_no_driver_library(tmp_path, monkeypatch):
    missing = tmp_path / "libcuda.so.1"
    monkeypatch.setenv("MOERUN_LIBCUDA", str(missing))
    found = _core.probe_gpu()
    assert found["devices"] == []
    assert found["library"] == str(missing)
    assert "no CUDA driver" in found["reason"]
