"""Build Sudoku-Extreme or Maze-30x30-Hard (or stand-ins of any size) as a folder that training, evaluation,
`load_dataset` and `scripts/push_to_hub.py dataset` all read.

    python scripts/build_dataset.py sudoku-extreme --source hub --num-train 1000 --output-dir data/sudoku
    python scripts/build_dataset.py sudoku-extreme --source hub --config 1k-aug-1000 --output-dir data/sudoku-aug
    python scripts/build_dataset.py sudoku-extreme --source generate --num-train 1000 --output-dir data/own
    python scripts/build_dataset.py sudoku-extreme --source generate --grid 6x6 --num-train 5000 --num-test 500 \\
        --output-dir data/sudoku6
    python scripts/build_dataset.py sudoku-extreme --source my_puzzles.csv.gz --num-test 100 --output-dir data/mine
    python scripts/build_dataset.py maze-hard --source hub --output-dir data/maze
    python scripts/build_dataset.py maze-hard --source generate --grid 13x13 --num-train 1000 --output-dir data/maze13
    python scripts/build_dataset.py maze-hard --source generate --output-dir data/maze --verify

Sources: `hub` (the published repository at a pinned revision), `generate` (no network needed), or a table (CSV, TSV,
JSON, JSON lines, parquet; `.gz` and `.zip` allowed) or a folder of tables named by split, with columns question and
answer (or puzzle and solution, quizzes and solutions), optionally rating and source. Every row is checked; bad rows
are all listed and nothing is written, unless --skip-bad leaves them out. An unchanged build is not repeated. Training
can draw fresh symmetric copies by itself, so --num-aug is needed only for a table that is to be published or compared.
"""

import argparse
import dataclasses
import re
import sys
from pathlib import Path

if not __package__:
    import _checkout  # noqa: F401  (makes this checkout importable as air_model)

from air_model.scripts.door import in_sentences


def shape(text: str) -> tuple[int, int]:
    """'13x20' -> (13, 20)."""
    match = re.fullmatch(r"(\d+)[x×](\d+)", text.strip().lower())
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not HEIGHTxWIDTH, for example 9x9")
    return int(match[1]), int(match[2])


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("dataset", choices=["sudoku-extreme", "maze-hard"])
    add("--source", default="hub", help="hub, generate, or the path of a CSV or folder (default: hub)")
    add("--output-dir", type=Path, required=True, help="folder to write; replaced only when the build succeeds")
    names = ["1k", "1k-aug-1000", "full", "generated"]
    add("--config", choices=names, help="a published configuration; sets the numbers below")
    chosen = "training puzzles: a random choice of the source (default all), or to generate (1,000)"
    add("--num-train", "--subsample", type=int, metavar="N", help=chosen)
    add("--num-test", type=int, metavar="N", help="test puzzles; of a single CSV they are split off")
    add("--num-aug", type=int, metavar="N", help="symmetric copies per training puzzle (default 0)")
    add("--easier", action="store_true", help="Sudoku: add an easier copy beside every training row")
    add("--min-rating", type=int, metavar="R", help="only puzzles rated R or more")
    add("--grid", type=shape, metavar="HxW", help="grid to generate or read (default 9x9, 30x30)")
    add("--box", type=shape, metavar="HxW", help="Sudoku boxes (default the squarest: 6x6 has 2x3)")
    kinds = ["benchmark", "mixed", "minimal"]
    add("--difficulty", choices=kinds, help="generated Sudokus (default benchmark at 9x9, mixed elsewhere)")
    add("--min-path", type=int, metavar="N", help="generated mazes: moves of a shortest path at least")
    apart = "generated Sudokus: what the splits do not share, up to symmetry (default: solved grids)"
    add("--hold-out", choices=["grids", "puzzles"], default="grids", help=apart)
    add("--seed", type=int, default=0)
    add("--num-proc", type=int, metavar="N", help="threads (default: all cores); same bytes for any")
    add("--revision", help="commit of the Hub source (default: the pinned one)")
    add("--skip-bad", action="store_true", help="leave bad rows out (they are still listed)")
    add("--values", choices=["digits", "tokens"], help="what numbers are, where a source has lists of them")
    add("--force", action="store_true", help="build again although nothing changed")
    add("--verify", action="store_true", help="check every row again; write verification.json and plots")
    add("--reference", help="with --verify: a CSV, folder or Hub id to compare the statistics with")
    add("--quiet", action="store_true", help="no progress bars")
    return parser.parse_args(argv)


@in_sentences("build_dataset")
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    from air_model.datasets_builders.build import CONFIGS, BuildConfig, Options, build
    from air_model.datasets_builders.loading import fault_lines
    from air_model.datasets_builders.verify import verify

    options = {field.name: getattr(args, field.name) for field in dataclasses.fields(Options)}
    options["num_aug"] = args.num_aug or 0
    preset = CONFIGS.get(args.config, {})
    if "source" in preset and args.source not in ("generate", "hub"):
        raise ValueError("--config generated goes with --source generate.")
    options |= {name: value for name, value in preset.items() if name == "source" or getattr(args, name) is None}
    if (options["num_train"], options["num_aug"]) == (preset.get("num_train"), preset.get("num_aug", 0)):
        options["name"] = args.config
    config = BuildConfig(dataset=args.dataset, num_proc=args.num_proc, progress=not args.quiet, **options)
    meta = build(config, args.output_dir, force=args.force)
    for split, rows in meta["skipped_rows"].items():
        for line in fault_lines(rows):
            print(f"left out: {split} {line}", file=sys.stderr)
    for name, table in meta["configs"].items():
        for split, info in table["splits"].items():
            print(f"{args.output_dir}/{name}: {split} {info['rows']:,} rows, {info['puzzles']:,} puzzles")
    if args.verify:
        report = verify(args.output_dir, reference=args.reference, num_proc=args.num_proc, progress=not args.quiet)
        print(report["summary"])
        return 0 if report["ok"] else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
