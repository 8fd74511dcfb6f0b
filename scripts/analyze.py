"""What a model does: roll-outs, freeze and attention studies, geometry, search trees, and a report of most of it.

    python scripts/analyze.py rollout   --model DIR --data sapientinc/sudoku-extreme --limit 100 --output-dir out
    python scripts/analyze.py freeze    --model DIR --data dev.csv.gz --limit 1000 --output-dir out
    python scripts/analyze.py freeze    --model runs/*/model --data dev.csv.gz --output-dir out       # mean over seeds
    python scripts/analyze.py freeze    --model DIR --data dev.csv.gz --output-dir out \\
        --interventions freeze:z_l:4- freeze:z_h:2-6 reset:z_l:5 swap:3 perturb:z_h:0.1:0-4 through:z_l
    python scripts/analyze.py attention --model DIR --data dev.csv.gz --limit 1000 --output-dir out --parquet
    python scripts/analyze.py geometry  --model DIR --data dev.csv.gz --limit 500 --output-dir out
    python scripts/analyze.py search    --model DIR --data dev.csv.gz --limit 1 --output-dir out       # guesses, drawn
    python scripts/analyze.py report    --model DIR --data dev.csv.gz --limit 200 --output-dir out     # report.html
    python scripts/analyze.py published --data FOLDER --output-dir out     # the paper's figures from its own results

Results go to OUTPUT_DIR/analysis.json (studies of the same model and puzzles share it), tables to *.md, figures to
figures/. A killed run, started again, goes on behind its last finished chunk (cache/). ACT steps count from 0.
"""

import argparse
import sys
from pathlib import Path

if not __package__:
    import _checkout  # noqa: F401

from air_model.pipeline_air import in_size, load_model
from air_model.scripts.door import add_values_option, in_sentences, need_positive


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("command", choices=["rollout", "freeze", "attention", "geometry", "search", "report", "published"])
    help_model = "model folder or Hub id; several are studied one after another"
    add("--model", dest="models", nargs="+", default=[], help=help_model)
    help_data = "Hub data set (NAME[:CONFIG]), folder of build_dataset.py, or CSV with question,answer"
    add("--data", required=True, help=help_data)
    add("--output-dir", type=Path, required=True)
    add("--split", default="test")
    add("--limit", type=int, help="only the first N puzzles")
    add_values_option(parser)
    add("--batch-size", type=int, help="puzzles at a time; default: what suits the device")
    add("--steps", type=int, nargs="+", help="attention: ACT steps to look at; default 2 4 6 8 10 12 14 15")
    add("--interventions", nargs="+", default=[], metavar="I", help="freeze: further interventions, as in the example")
    add("--pictures", type=int, default=2, help="rollout, search: puzzles that are drawn")
    add("--device", help="default: the GPU if there is one")
    add("--dtype", choices=["float32", "bfloat16"], help="default: bfloat16 on a GPU, float32 on a CPU")
    add("--no-figures", dest="figures", action="store_false", help="numbers and tables only")
    add("--parquet", action="store_true", help="also every single row as parquet, for plots of one's own")
    add("--no-cache", dest="cache", action="store_false", help="keep no finished chunks")
    add("--quiet", dest="progress", action="store_false", help="no progress bar")
    return parser.parse_args(argv)


@in_sentences("analyze")
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    from air_model.analysis.commands import analyze, redraw_published

    need_positive(args, "limit", "batch_size")
    if args.pictures < 0:
        raise ValueError(f"--pictures must be 0 or more, got {args.pictures}.")
    if args.command == "published":
        print("\n".join(map(str, redraw_published(Path(args.data), args.output_dir))))
    elif not args.models:
        raise ValueError("Which model? Give --model with a folder or a Hub id.")
    elif args.command == "search":
        print("\n".join(map(str, search(args))))
    else:
        print(f"Results in {analyze(args.command, args)}")
    return 0


def search(args: argparse.Namespace) -> list[Path]:
    from air_model.analysis.search import study_searches
    from air_model.datasets_builders.loading import load_for_models

    if len(args.models) > 1:
        raise ValueError(f"search draws the trees of one model, got {len(args.models)}: call it for each.")
    model = load_model(args.models[0], args.device)
    puzzles = load_for_models([model], args.data, args.split, args.limit, args.values)
    options = {name: getattr(args, name) for name in ("dtype", "batch_size", "progress")}
    pictures = args.pictures if args.figures else 0
    return study_searches(in_size(model, puzzles.task), puzzles, args.output_dir, pictures, **options)


if __name__ == "__main__":
    sys.exit(main())
