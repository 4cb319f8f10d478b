"""Uses the stand-in driver through its C functions, as a caller beside the engine does: memory, streams,
copies, kernels."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import numpy as np

POINTER, STREAM = ctypes.c_uint64, ctypes.c_void_p


class DeviceArray:
    """An array on the device as cupy's is: contiguous, with __cuda_array_interface__."""

    def __init__(self, address: int, shape: tuple[int, ...], dtype: np.dtype, stream: int | None) -> None:
        self.address, self.shape, self.dtype, self.stream = address, shape, np.dtype(dtype), stream

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize

    @property
    def __cuda_array_interface__(self) -> dict[str, object]:
        return {
            "version": 3,
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "strides": None,
            "stream": self.stream,
        }


class EmulatedDevice:
    """Device 0 of the library, with one stream; everything is given back by close()."""

    def __init__(self, library: Path) -> None:
        self._c = ctypes.CDLL(str(library))
        self._memory: list[int] = []
        self._modules: list[ctypes.c_void_p] = []
        self._streams: list[ctypes.c_void_p] = []
        self._host: list[ctypes.c_void_p] = []
        self._call("cuInit", ctypes.c_uint(0))
        context = ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
        self._call("cuCtxSetCurrent", context)
        self._stream = ctypes.c_void_p()
        self._call("cuStreamCreateWithPriority", ctypes.byref(self._stream), ctypes.c_uint(1), 0)

    def _call(self, name: str, *arguments: object) -> None:
        code = getattr(self._c, name)(*arguments)
        if code != 0:
            raise RuntimeError(f"{name} returned {code}")

    def allocate(self, size: int) -> int:
        """Bytes of device memory, all 0xFF."""
        address = POINTER()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        self._memory.append(address.value)
        return address.value

    def upload(self, array: np.ndarray) -> int:
        array = np.ascontiguousarray(array)
        address = self.allocate(max(1, array.nbytes))
        size = ctypes.c_size_t(array.nbytes)
        self._call(
            "cuMemcpyHtoDAsync_v2", POINTER(address), ctypes.c_void_p(array.ctypes.data), size, self._stream
        )
        return address

    def download(self, address: int, size: int) -> bytes:
        buffer = ctypes.create_string_buffer(size)
        self._call("cuMemcpyDtoHAsync_v2", buffer, POINTER(address), ctypes.c_size_t(size), self._stream)
        return buffer.raw

    def new_stream(self) -> int:
        """The handle of another stream, to be given back by close()."""
        stream = ctypes.c_void_p()
        self._call("cuStreamCreateWithPriority", ctypes.byref(stream), ctypes.c_uint(1), 0)
        self._streams.append(stream)
        return stream.value or 0

    def put(self, array: np.ndarray, stream: int) -> DeviceArray:
        """A copy of the array on the device, there behind what the stream does now."""
        pinned, size = self._pinned(array.nbytes)
        ctypes.memmove(pinned, np.ascontiguousarray(array).ctypes.data, array.nbytes)
        put = DeviceArray(self.allocate(max(1, array.nbytes)), array.shape, array.dtype, stream)
        self._call("cuMemcpyHtoDAsync_v2", POINTER(put.address), pinned, size, ctypes.c_void_p(stream))
        return put

    def hold(self, stream: int) -> Callable[[], None]:
        """Stops the stream behind what it does now, until the function that this returns is called."""
        pinned, _ = self._pinned(4)
        word = ctypes.cast(pinned, ctypes.POINTER(ctypes.c_uint32))
        word[0] = 0
        one, flags = ctypes.c_uint32(1), ctypes.c_uint(0)
        self._call("cuStreamWaitValue32_v2", ctypes.c_void_p(stream), POINTER(pinned.value or 0), one, flags)

        def let_go() -> None:
            word[0] = 1

        return let_go

    def capture(self, stream: int, active: bool) -> None:
        """Says that the stream is being captured into a graph, or not any more."""
        self._c.fakecuda_capture(ctypes.c_void_p(stream), ctypes.c_int(active))

    def overwrite(self, array: DeviceArray, stream: int) -> None:
        """With zeros, behind what the stream does now."""
        size = ctypes.c_size_t(array.nbytes)
        zero = ctypes.c_ubyte(0)
        self._call("cuMemsetD8Async", POINTER(array.address), zero, size, ctypes.c_void_p(stream))

    def get(self, array: DeviceArray, stream: int) -> np.ndarray:
        """What the array holds behind what the stream does now."""
        pinned, size = self._pinned(array.nbytes)
        self._call("cuMemcpyDtoHAsync_v2", pinned, POINTER(array.address), size, ctypes.c_void_p(stream))
        self._call("cuStreamSynchronize", ctypes.c_void_p(stream))
        raw = ctypes.string_at(pinned, array.nbytes)
        return np.frombuffer(raw, array.dtype).reshape(array.shape)

    def _pinned(self, size: int) -> tuple[ctypes.c_void_p, ctypes.c_size_t]:
        pinned = ctypes.c_void_p()
        self._call("cuMemHostAlloc", ctypes.byref(pinned), ctypes.c_size_t(max(1, size)), ctypes.c_uint(1))
        self._host.append(pinned)
        return pinned, ctypes.c_size_t(size)

    def launch(self, image: bytes, function: str, grid: tuple[int, int, int], *values: int) -> None:
        """Addresses are passed as 8 bytes, what is below 2^31 and no address (a flag) as 4."""
        module, kernel = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(image))
        self._modules.append(module)
        self._call("cuModuleGetFunction", ctypes.byref(kernel), module, ctypes.c_char_p(function.encode()))
        parameters = [ctypes.c_uint64(value) for value in values]  # little-endian: 4 bytes of it are the int
        pointers = (ctypes.c_void_p * len(parameters))(*(ctypes.addressof(p) for p in parameters))
        block, shared = (128, 1, 1), 0
        sizes = [ctypes.c_uint(n) for n in (*grid, *block, shared)]
        self._call("cuLaunchKernel", kernel, *sizes, self._stream, pointers, None)

    def close(self) -> None:
        self._call("cuStreamSynchronize", self._stream)
        self._call("cuStreamDestroy_v2", self._stream)
        for stream in self._streams:
            self._call("cuStreamSynchronize", stream)
            self._call("cuStreamDestroy_v2", stream)
        for pinned in self._host:
            self._call("cuMemFreeHost", pinned)
        for module in self._modules:
            self._call("cuModuleUnload", module)
        for address in self._memory:
            self._call("cuMemFree_v2", POINTER(address))
        self._call("cuCtxSetCurrent", None)
        self._call("cuDevicePrimaryCtxRelease_v2", 0)
