"""AMX's tiles, emulated and in hardware, under AddressSanitizer with UndefinedBehaviorSanitizer
(tiles_test.cc)."""

from __future__ import annotations

from pathlib import Path

from native_build import build, run, skip_unless_it_links

SOURCES = ("cpu/cpu_info.cc", "tests/native/tiles_test.cc")


def test_tiles_do_what_the_manual_says(tmp_path: Path) -> None:
    flag = "-fsanitize=address,undefined"
    skip_unless_it_links(flag, tmp_path)
    build(
        "-std=c++20",
        "-O1",
        "-g1",
        "-fno-sanitize-recover=all",
        flag,
        "-I.",
        *SOURCES,
        "-o",
        str(tmp_path / "t"),
    )
    done = run(str(tmp_path / "t"))
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-6000:]
    assert done.stdout.startswith("good: emulated tiles")
