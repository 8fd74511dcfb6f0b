"""Publish a model, a data set, the Space or a collection on the Hugging Face Hub.

    export HF_TOKEN=hf_…                                    # the only place a token is read from
    python scripts/push_to_hub.py model --model runs/x/model --repo-id USER/air-sudoku --dry-run out   # look first
    python scripts/push_to_hub.py model --model runs/x/model --repo-id USER/air-sudoku --tag v0.1.0
    python scripts/push_to_hub.py model --model runs/x/model --repo-id USER/air-sudoku --evaluation a.json b.json
    python scripts/push_to_hub.py model --model runs/x/model --repo-id OTHER/air-sudoku --create-pr
    python scripts/push_to_hub.py dataset --data data/sudoku --repo-id USER/sudoku-generated --private
    python scripts/push_to_hub.py space --repo-id USER/air-demo --model USER/air-sudoku
    python scripts/push_to_hub.py collection --repo-id USER/AIR --item model:USER/air-sudoku --item space:USER/air-demo

Only what belongs into such a repository is sent, in one commit. Pickles, secrets and machine paths are refused.
--dry-run writes the exact folder and sends nothing. After an interruption repeat the command: what arrived is kept.
"""

import argparse
import sys
from pathlib import Path

if not __package__:
    import _checkout  # noqa: F401

from air_model.publishing.push import push
from air_model.publishing.stage import PACKAGE
from air_model.publishing.upload import HubError


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="{model,dataset,space,collection}")
    helps = {
        "model": "a saved model folder",
        "dataset": "a folder written by build_dataset.py",
        "space": "the demo",
        "collection": "a list of published things",
    }
    for kind, text in helps.items():
        one = kinds.add_parser(kind, help=text, description=__doc__, formatter_class=parser.formatter_class)
        one.add_argument("--repo-id", required=True, metavar="USER/NAME")
        one.add_argument("--private", action="store_true", default=None, help="make a new repository private")
        one.add_argument("--dry-run", type=Path, metavar="DIR", help="write the exact folder there and send nothing")
        one.add_argument("--token", nargs="?", const="", help=argparse.SUPPRESS)
        if kind == "collection":
            one.add_argument("--item", action="append", required=True, metavar="KIND:ID[=NOTE]",
                             help="model:USER/NAME, dataset:…, space:… or paper:2605.17811; repeat it")  # fmt: skip
            one.add_argument("--description", help="one sentence under the title")
            continue
        one.add_argument("--revision", metavar="BRANCH", help="branch to commit to, made where missing (default main)")
        one.add_argument("--tag", help="mark the commit, for example v0.1.0; an existing tag is never moved")
        one.add_argument("--create-pr", action="store_true", help="propose the commit as a pull request")
        one.add_argument("--message", help="commit message")
        if kind == "model":
            one.add_argument("--model", type=Path, required=True, metavar="DIR", help="folder with model.safetensors")
            one.add_argument("--evaluation", type=Path, nargs="+", action="extend", default=[], metavar="FILE.json",
                             help="from evaluate.py (default: those beside the model)")  # fmt: skip
            one.add_argument("--dataset", nargs="+", action="extend", default=[], metavar="USER/NAME",
                             help="Hub data sets it was trained on, for the card")  # fmt: skip
            one.add_argument("--no-figures", action="store_true", help="draw nothing from the checkpoint")
        elif kind == "dataset":
            one.add_argument("--data", "--dataset", type=Path, required=True, metavar="DIR", dest="data",
                             help="folder with parquet files and README.md")  # fmt: skip
        else:
            one.add_argument("--space", type=Path, default=PACKAGE / "spaces_demo", metavar="DIR",
                             help="folder with app.py (default: this project's)")  # fmt: skip
            one.add_argument("--model", metavar="USER/NAME|DIR",
                             help="model to show: a Hub id, or a folder that travels along")  # fmt: skip
    arguments = parser.parse_args(argv)
    if arguments.token is not None:
        parser.error("tokens are read from the environment variable HF_TOKEN only, never from the command line")
    return arguments


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    try:
        push(arguments)
    except (HubError, ValueError, OSError) as error:
        print(f"push_to_hub: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("push_to_hub: interrupted; repeat the command to go on, what was uploaded is kept.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
