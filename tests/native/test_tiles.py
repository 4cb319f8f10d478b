"""AMX's tiles, emulated and in hardware, under AddressSanitizer with UndefinedBehaviorSanitizer
(tiles_test.cc)."""

from __future__ import annotations

from pathlib import Path

from native_programs import SANITIZERS, build, run, skip_unless_sanitizer_works

FLAGS = SANITIZERS["address and undefined"]


def test_tiles_do_what_the_manual_says(tmp_path: Path) -> None:
    skip_unless_sanitizer_works(FLAGS, tmp_path)
    sources = ("cpu/cpu_info.cc", "cpu/topology.cc", "tests/native/tiles_test.cc")
    program = build(dict.fromkeys(sources, ()), "tiles_test", FLAGS)
    done = run(str(program))
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-6000:]
    assert done.stdout.startswith("good: emulated tiles")
