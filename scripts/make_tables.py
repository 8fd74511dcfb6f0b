"""Write every table and sentence of README.md, docs/findings.md and results/TABLES.md, and draw their figures.

    python scripts/make_tables.py                          # those, the Space's findings.json, results/figures/*.png
    python scripts/make_tables.py --check                  # write nothing; exit 1 where a table is out of date
    python scripts/make_tables.py --runs my/runs.jsonl --file my_report.md

A file asks for a table by two comment lines, and what stands between them is replaced:

    <!-- table: injection -->
    <!-- /table -->

What counts as a reproduction is said in `analysis/tables.py`.
"""

import argparse
import json
import sys
from pathlib import Path

if not __package__:
    import _checkout  # noqa: F401

from air_model.records import write_text
from air_model.scripts.door import in_sentences

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
SPACE = ROOT / "spaces_demo" / "static"


@in_sentences("make_tables")
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--runs", type=Path, help="run records; default: results/runs.jsonl")
    add("--published", type=Path, default=RESULTS / "published.json")
    add("--systems", type=Path, default=RESULTS / "published_systems.json", help="public systems of the leaderboard")
    add("--checkpoints", type=Path, default=ROOT / "checkpoints", help="folder of trained models")
    add("--file", type=Path, action="append", help="a file with markers; default: README.md, docs/findings.md")
    add("--tables", type=Path, help="all tables in one file; default, but for a --file of yours: results/TABLES.md")
    add("--figures", type=Path, help="folder of the bar charts; default, but for a --file of yours: results/figures")
    add("--no-figures", action="store_true")
    add("--check", action="store_true", help="write nothing, exit 1 where something is out of date")
    args = parser.parse_args(argv)
    from air_model.analysis import findings, tables

    try:
        if args.runs is not None and not args.runs.is_file():
            raise ValueError(f"--runs {args.runs}: there is no such file. Nothing was written.")
        runs = tables.read_runs(args.runs or RESULTS / "runs.jsonl")
        published, systems = (json.loads(path.read_text(encoding="utf-8")) for path in (args.published, args.systems))
        made = tables.all_tables(runs, published, systems, args.checkpoints) | findings.tables(RESULTS, published)
        files = args.file or [ROOT / "README.md", ROOT / "docs" / "findings.md"]
        texts = {name: text for name, (_, text) in made.items()} | findings.parts_of_the_page(RESULTS, published)
        wanted = {path: tables.fill(path.read_text(encoding="utf-8"), texts, path.name) for path in files}
        ours = not (args.file or args.runs)
        pages, figures = args.tables or ours and RESULTS / "TABLES.md", args.figures or ours and RESULTS / "figures"
        if pages:
            wanted[pages] = tables.page(made, published, pages)
        if ours:
            shown = findings.for_the_space(RESULTS)
            wanted[SPACE / "findings.json"] = json.dumps(shown, indent=1, ensure_ascii=False) + "\n"
    except (ValueError, OSError, KeyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    stale = [path for path, text in wanted.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    if args.check:
        for path in stale:
            print(f"{path} is out of date: run python scripts/make_tables.py")
        return 1 if stale else 0
    written = [write_text(path, wanted[path]) for path in stale]
    if figures and not args.no_figures:
        written += tables.bar_charts(runs, published, figures)
        written += findings.draw(RESULTS, published, figures) if ours else []
    for path in written:
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
