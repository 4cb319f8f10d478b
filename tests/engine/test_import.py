"""import moerun is light: what it needs later is imported later."""

from __future__ import annotations

from child_process import check_python


def test_importing_and_using_with_numpy_loads_no_framework() -> None:
    check_python(
        """
        import sys
        import moerun
        frameworks = {"torch", "transformers", "triton", "safetensors", "tqdm", "matplotlib"}
        assert not frameworks & sys.modules.keys(), frameworks & sys.modules.keys()

        import numpy as np
        engine = moerun.Engine(cpu_threads=2)
        weights = np.ones((2, 8, 4), np.float32)
        spec = moerun.LayerSpec(2, 4, 4, top_k=1)
        layer = engine.add_layer(spec, {"gate_up": weights, "down": weights[:, :4]})
        ids = np.zeros((3, 1), np.int64)
        y = layer.forward(np.ones((3, 4), np.float32), ids, np.ones((3, 1), np.float32))
        assert y.shape == (3, 4) and np.isfinite(y).all()
        assert not frameworks & sys.modules.keys(), frameworks & sys.modules.keys()
        """
    )


def test_importing_starts_no_thread() -> None:
    check_python(
        """
        import os
        import numpy  # OpenBLAS starts threads
        before = len(os.listdir("/proc/self/task"))
        import moerun
        assert len(os.listdir("/proc/self/task")) == before
        """
    )


def test_unknown_names_are_attribute_errors() -> None:
    check_python(
        """
        import moerun
        try:
            moerun.nonsense
        except AttributeError as error:
            assert "nonsense" in str(error)
        else:
            raise SystemExit("no error")
        """
    )
