"""This package and its_hub on the same synthetic worlds, in one run.

    python -m tests.benchmarks.peers.install /tmp/peers
    python -m tests.benchmarks.leaderboard --peers /tmp/peers --out /tmp/leaderboard

Prints the tables, writes them as JSON beside the cells, and with `--page docs/leaderboard.md`
between the page's `synthetic` marks. What is measured already is not measured again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.synthetic import SETTINGS, Setting, measure
from vprm_search.compare.intervals import bootstrap
from vprm_search.compare.report import fill_section, percent, points
from vprm_search.compare.worlds import SyntheticWorld
from vprm_search.evaluate.cells import cell_path
from vprm_search.evaluate.folder import write_atomically
from vprm_search.evaluate.search_summary import Measured, read_cells, summarise

VOTE = "odds-vote:product"
"""The selector of `auto`."""


def add_peers(folder: Path) -> None:
    """Make the packages of the peers' environment importable, after all others."""
    packages = folder if folder.name == "site-packages" else None
    found = packages or next(iter((folder / "lib").glob("python3*/site-packages")), None)
    if found is None or not (found / "its_hub").is_dir():
        raise SystemExit(f"{folder}: no its_hub there; make it with peers/install.py")
    sys.path.append(str(found))


def measure_peers(setting: Setting, out: Path) -> None:
    """Measure its_hub on one world, in cells beside this package's own."""
    from tests.benchmarks.peers.its_hub_entries import entries
    from tests.benchmarks.peers.its_hub_entries import measure as measure_entry

    world = SyntheticWorld(setting.world)
    for name in entries():
        for size in setting.sizes:
            path = cell_path(out, 0, setting.problems, name, size)
            if path.exists() or size % 4:  # its beam is 4 wide and takes no other budgets
                continue
            row = measure_entry(world, range(setting.problems), name, size)
            write_atomically(path, json.dumps(row))
            print(f"{out.name}: {name}@{size} in {row['seconds']:.1f} s", flush=True)


def run(names: Sequence[str], out: Path) -> tuple[str, dict[str, Any]]:
    """Measure worlds by name; return the tables and everything as JSON."""
    tables, summaries = [], {}
    for name in names:
        setting, folder = SETTINGS[name], out / name
        print(f"{name}: {setting.title}", flush=True)
        measure(setting, folder, report=lambda line: print(line, flush=True))
        measure_peers(setting, folder)
        cells: list[Measured] = read_cells(folder)
        summaries[name] = {"title": setting.title, **summarise(cells, max_failed=1)}
        summaries[name]["auto"] = [against(cells, rivals) for rivals in ("its_hub", "best-of-n")]
        tables.append(f"**{setting.title}** ({setting.problems} problems)")
        tables.append(synthetic_table(summaries[name]))
    return "\n\n".join([auto_table(summaries), *tables]), summaries


def against(cells: Sequence[Measured], rivals: str) -> dict[str, Any] | None:
    """Return `auto` with its own vote less the best of some rivals, paired by problem.

    The best is the strategy and selector of the highest accuracy here, among those whose name
    begins with `rivals`; it is chosen by the result, which favours it.
    """
    mine = [c.right[VOTE] for c in cells if c.name == "auto"]
    theirs = [
        (right, f"{c.name}, {choice}")
        for c in cells
        if c.name.startswith(rivals)
        for choice, right in c.right.items()
    ]
    if not mine or not theirs:
        return None
    best, name = max(theirs, key=lambda pair: float(pair[0].mean()))
    difference = bootstrap(mine[0] - best).to_json()
    return {"rival": name, "accuracy": float(best.mean()), "difference": difference}


def auto_table(summaries: dict[str, Any]) -> str:
    """Return one line per world: auto, and its paired differences to the best of the others."""
    lines = [
        f"| world | auto, {VOTE} | its_hub's best | auto less it | best-of-n's best "
        "| auto less it |",
        "|---|---|---|---|---|---|",
    ]
    for name, summary in summaries.items():
        rows = [r for r in summary["rows"] if (r["name"], r["choice"]) == ("auto", VOTE)]
        parts = []
        for found in summary["auto"]:
            parts += ["", ""] if found is None else [_rival(found), points(found["difference"])]
        lines += [f"| {name} | {percent(r['accuracy'])} | {' | '.join(parts)} |" for r in rows]
    return "\n".join(lines)


def _rival(found: dict[str, Any]) -> str:
    name = found["rival"].removeprefix("its_hub ").removeprefix("best-of-n, ")
    return f"{100 * found['accuracy']:.1f} ({name})"


def synthetic_table(summary: dict[str, Any]) -> str:
    """Return accuracy and cost in one table, its_hub's rows among this package's."""
    lines = [
        "| N | strategy, selector | accuracy | generated tokens | scored tokens | with an ideal "
        "prefix cache |",
        "|---|---|---|---|---|---|",
    ]
    for size in sorted({row["size"] for row in summary["rows"]}):
        rows = [row for row in summary["rows"] if row["size"] == size]
        for row in sorted(rows, key=lambda row: -row["accuracy"]["mean"]):
            peer = row["name"].startswith("its_hub")
            name = f"*{row['name']}*" if peer else row["name"]
            lines.append(
                f"| {size} | {name}, {row['choice']} | {percent(row['accuracy'])} "
                f"| {row['generated_tokens']:.0f} | {row['scored_tokens']:.0f} "
                f"| {row['computed_tokens']:.0f} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=Path, required=True, help="environment with its_hub")
    parser.add_argument("--out", type=Path, required=True, help="folder of the measured cells")
    parser.add_argument("--page", type=Path, help="Markdown file with 'synthetic' marks")
    parser.add_argument("worlds", nargs="*", help=f"of {', '.join(SETTINGS)}; default: all")
    given = parser.parse_args()
    add_peers(given.peers)
    text, summaries = run(given.worlds or list(SETTINGS), given.out)
    write_atomically(given.out / "leaderboard.json", json.dumps(summaries, indent=1))
    print(text)
    if given.page is not None:
        fill_section(given.page, text, marks=("synthetic",))


if __name__ == "__main__":
    main()
