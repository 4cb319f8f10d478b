"""Arrays on the engine's GPU as callers pass them: torch CUDA tensors, or what has __cuda_array_interface__.

Both are addresses and a stream handle for the core; torch is needed only for torch's tensors.
"""

from __future__ import annotations

import math
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from moerun import tensors

_LEGACY_DEFAULT_STREAM = 1  # __cuda_array_interface__ v3 writes 1 for what the driver also calls 0


class DeviceArray:
    """What __cuda_array_interface__ says of an array, in the words that moerun.tensors understands.

    Raises ValueError if its elements do not lie behind each other.
    """

    def __init__(self, array: Any, what: str) -> None:
        interface = array.__cuda_array_interface__
        self.shape: tuple[int, ...] = tuple(interface["shape"])
        self.dtype = np.dtype(interface["typestr"])
        self.ndim = len(self.shape)
        self.address: int = interface["data"][0]
        self.read_only: bool = interface["data"][1]
        self.stream: int | None = interface.get("stream")
        strides = interface.get("strides")
        if strides is not None and tuple(strides) != self._contiguous() and math.prod(self.shape) > 0:
            raise ValueError(f"{what} must be contiguous, got strides {list(strides)}; pass a copy")

    def _contiguous(self) -> tuple[int, ...]:
        """Strides in bytes of such a shape."""
        return tuple(self.dtype.itemsize * math.prod(self.shape[i + 1 :]) for i in range(self.ndim))

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize


def lies_on_gpu(array: Any) -> bool:
    """Whether an array lies on device 0, the engine's, as far as can be told."""
    if tensors.is_torch(array):
        return array.device.type == "cuda" and array.device.index == 0
    return hasattr(array, "__cuda_array_interface__")


def as_device_array(array: Any, like: Any, what: str) -> Any:
    """`array` as a contiguous torch tensor without autograd where `like` is one, else as a DeviceArray.

    A torch tensor that lies elsewhere is copied to where `like` lies, in the current stream.

    Raises
    ------
    ValueError, TypeError
        It is not contiguous, or lies in host memory where nothing can copy it.
    """
    if tensors.is_torch(like):
        array = tensors.as_array(array, what)
        if not tensors.is_torch(array):
            array = sys.modules["torch"].from_numpy(array)
        return array.detach().to(like.device, non_blocking=True).contiguous()
    if not hasattr(array, "__cuda_array_interface__"):
        raise TypeError(f"{what} must lie on the GPU as x does, got {type(array).__name__}")
    return DeviceArray(array, what)


def address_of(array: Any) -> int:
    """Of the first element, on the device."""
    return array.address if isinstance(array, DeviceArray) else array.data_ptr()


def stream_handle(stream: Any, x: Any) -> int:
    """The driver's handle of the stream to order work with.

    Parameters
    ----------
    stream
        A handle, an object with one (torch.cuda.Stream), or None: torch's current stream, or what x's
        __cuda_array_interface__ names, or the default stream.
    """
    if stream is None and tensors.is_torch(x):
        return sys.modules["torch"].cuda.current_stream(x.device).cuda_stream
    if stream is None:
        stream = getattr(x, "stream", None) or 0
        return 0 if stream == _LEGACY_DEFAULT_STREAM else stream
    handle = getattr(stream, "cuda_stream", stream)
    if isinstance(handle, bool) or not isinstance(handle, int) or handle < 0:
        raise TypeError(f"stream must be a handle, a torch.cuda.Stream or None, got {stream!r}")
    return handle


def on_stream(handle: int, x: Any) -> AbstractContextManager[Any]:
    """Inside, what torch does with arrays like x goes to the stream."""
    if not tensors.is_torch(x):
        return nullcontext()
    cuda = sys.modules["torch"].cuda
    if handle == cuda.current_stream(x.device).cuda_stream:
        return nullcontext()
    return cuda.stream(cuda.ExternalStream(handle, device=x.device))


def record_stream(array: Any, handle: int) -> None:
    """Tells torch, before it uses a tensor's memory again, that work of the stream uses it too.

    Needless, and not done, for the current stream, which tensors come from.
    """
    if not tensors.is_torch(array):
        return
    cuda = sys.modules["torch"].cuda
    if handle != cuda.current_stream(array.device).cuda_stream:
        array.record_stream(cuda.ExternalStream(handle, device=array.device))
