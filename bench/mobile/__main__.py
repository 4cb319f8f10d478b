"""python -m bench.mobile: measures, replays, and writes docs/results/mobile.md, mobile.json and two plots.

Minutes on two cores; the measurement of speed writes a checkpoint of 5 GB into bench/.cache once.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from bench import report
from bench.mobile import page, plots, quality, replayed, speed
from moerun.replay.report import rounded

PARTS = ("quality", "speed", "replay")


def main() -> None:
    """Makes the parts that are asked for anew, keeps the others, and writes the page."""
    parser = argparse.ArgumentParser("bench.mobile", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("docs/results"), help="folder to write to")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to make anew")
    options = parser.parse_args()
    file = options.output / "mobile.json"
    data: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    if "quality" not in data and "quality" not in options.only:
        parser.error(f"{file} has no part quality yet, from which the others take their pattern; make it too")

    environment = report.environment()
    for part in PARTS:
        if part not in options.only:
            continue
        if part == "quality":
            found: Any = quality.measure(threads=1)
        elif part == "speed":
            found = speed.measure(options.threads, data["quality"]["patterns"])
        else:
            found = replayed.replay(data["quality"]["patterns"])
        data[part] = rounded(found)
        data.setdefault("environment", {})[part] = environment
        options.output.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(data) + "\n")
    missing = [part for part in PARTS if part not in data]
    if missing:
        print(f"{file} is written; the page needs {' and '.join(missing)} as well")
        return
    (options.output / "mobile.md").write_text(page.render(data))
    plots.quality(data["quality"]["texts"], options.output / "mobile-quality.png")
    plots.replayed(data["replay"], replayed.SHOWN, options.output / "mobile-replay.png")


if __name__ == "__main__":
    main()
