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

from air_model.publishing.stage import PACKAGE
from air_model.publishing.upload import push
from air_model.scripts.door import in_sentences


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
        add = one.add_argument
        add("--repo-id", required=True, metavar="USER/NAME")
        add("--private", action="store_true", default=None, help="make a new repository private")
        add("--dry-run", type=Path, metavar="DIR", help="write the exact folder there and send nothing")
        add("--token", nargs="?", const="", help=argparse.SUPPRESS)
        if kind == "collection":
            text = "model:USER/NAME, dataset:…, space:… or paper:2605.17811; repeat it"
            add("--item", action="append", required=True, metavar="KIND:ID[=NOTE]", help=text)
            add("--description", help="one sentence under the title")
            continue
        add("--revision", metavar="BRANCH", help="branch to commit to, made where missing (default main)")
        add("--tag", help="mark the commit, for example v0.1.0; an existing tag is never moved")
        add("--create-pr", action="store_true", help="propose the commit as a pull request")
        add("--message", help="commit message")
        folder = {"type": Path, "metavar": "DIR", "dest": "source"}
        several = {"nargs": "+", "action": "extend", "default": []}
        if kind == "model":
            add("--model", **folder, required=True, help="folder with model.safetensors")
            text = "from evaluate.py (default: those beside the model)"
            add("--evaluation", **several, type=Path, metavar="FILE.json", help=text)
            add("--dataset", **several, metavar="USER/NAME", help="Hub data sets it was trained on, for the card")
            add("--no-figures", action="store_true", help="draw nothing from the checkpoint")
        elif kind == "dataset":
            add("--data", "--dataset", **folder, required=True, help="folder with parquet files and README.md")
        else:
            own = PACKAGE / "spaces_demo"
            add("--space", **folder, default=own, help="folder with app.py (default: this project's)")
            add("--model", metavar="USER/NAME|DIR", help="model to show: a Hub id, or a folder that travels along")
    arguments = parser.parse_args(argv)
    if arguments.token is not None:
        parser.error("tokens are read from the environment variable HF_TOKEN only, never from the command line")
    return arguments


@in_sentences("push_to_hub")
def main(argv: list[str] | None = None) -> int:
    try:
        push(parse_arguments(argv))
    except KeyboardInterrupt:
        print("push_to_hub: interrupted; repeat the command to go on, what was uploaded is kept.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
