"""python -m bench.mobile: measures, replays, and writes docs/results/mobile.md with its plots.

Every part's figures are kept in bench/results/mobile-PART.json with machine, commit and versions; the page is
made of what is kept. Quality and replay take minutes on two cores; speed takes about two minutes on two quiet
ones, and writes a checkpoint of 5 GB into bench/.cache once.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from bench import report
from bench.mobile import drafts_replayed, page, plots, quality, replayed, speed
from moerun.replay.report import rounded

PARTS = ("quality", "speed", "replay", "drafts")  # all but the first take their pattern from it
PAGE = report.ROOT / "docs" / "results"


def main() -> None:
    """Makes the parts that are asked for anew, keeps the others, and writes the page."""
    parser = argparse.ArgumentParser("bench.mobile", description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=report.RESULTS, help="folder of the figures")
    parser.add_argument("--page", type=Path, default=PAGE, help="folder of the page and its plots")
    parser.add_argument("--threads", type=int, default=2, help="of the measurement of speed")
    parser.add_argument("--rounds", type=int, default=speed.ROUNDS, help="of the measurement of speed")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS, help="parts to make anew; or none")
    options = parser.parse_args()

    environment = report.environment()
    print(report.render(environment), flush=True)
    for part in PARTS:
        if part in options.only:
            found = rounded(_make(part, options))
            kept = json.dumps({**environment, part: found}, indent=1)
            options.results.mkdir(parents=True, exist_ok=True)
            _file(options.results, part).write_text(kept + "\n")
            print(f"written: {_file(options.results, part)}", flush=True)
    write_page(kept_results(options.results), options.page)


def kept_results(folder: Path) -> dict[str, Any]:
    """The figures of the parts that there are, by name, and under "environment" where each was made."""
    data: dict[str, Any] = {"environment": {}}
    for part in PARTS:
        if not _file(folder, part).is_file():
            continue
        environment = json.loads(_file(folder, part).read_text())
        data[part] = environment.pop(part)
        data["environment"][part] = environment
    return data


def write_page(data: dict[str, Any], folder: Path) -> None:
    """mobile.md and its plots from the figures of the parts that there are."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mobile.md").write_text(page.render(data))
    if "quality" in data:
        plots.quality(data["quality"]["texts"], folder / "mobile-quality.png")
    if "replay" in data:
        plots.replayed(data["replay"], replayed.SHOWN, folder / "mobile-replay.png")


def _file(folder: Path, part: str) -> Path:
    return folder / f"mobile-{part}.json"


def _make(part: str, options: argparse.Namespace) -> Any:
    if part == "quality":
        return quality.measure(threads=1)
    file = _file(options.results, "quality")
    if not file.is_file():
        raise SystemExit(f"{file} is not there, from which {part} takes its pattern; make quality too")
    patterns = json.loads(file.read_text())["quality"]["patterns"]
    if part == "speed":
        return speed.measure(options.threads, patterns, options.rounds)
    return (replayed if part == "replay" else drafts_replayed).replay(patterns)


if __name__ == "__main__":
    main()
