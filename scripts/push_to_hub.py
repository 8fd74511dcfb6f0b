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
import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

if not __package__:
    import _checkout  # noqa: F401

from air_model.scripts import _hub, _release
from air_model.scripts._release import PACKAGE, Refused, Staged

REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")


def need_token() -> str:
    token = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN")
    if not token:
        raise Refused(
            "The environment variable HF_TOKEN is not set, so nothing was sent: make a token with write permission "
            "under Settings, Access Tokens on the Hub, or look first with --dry-run DIR."
        )
    return token


def stage(arguments: argparse.Namespace, folder: Path) -> Staged:
    """The folder that the command publishes, complete and checked."""
    if arguments.kind == "model":
        source = arguments.model
        staged = _release.stage_model(
            source,
            folder,
            repo_id=arguments.repo_id,
            evaluations=arguments.evaluation,
            datasets=arguments.dataset,
            figures=not arguments.no_figures,
        )
    elif arguments.kind == "dataset":
        source = arguments.data
        staged = _release.stage_dataset(source, folder, repo_id=arguments.repo_id)
    else:
        source = arguments.space
        staged = _release.stage_space(source, folder, repo_id=arguments.repo_id, model=arguments.model)
    _release.refuse_unsafe(folder, source)
    return staged


def loading_lines(staged: Staged, repo_id: str, revision: str | None) -> str:
    """Five lines or fewer that load what was published."""
    if staged.kind == "model":
        from air_model.configuration_air import AirConfig
        from air_model.scripts._cards import load_lines

        return load_lines(AirConfig.from_pretrained(staged.folder), repo_id, revision)
    if staged.kind == "dataset":
        from huggingface_hub import RepoCard

        configs = RepoCard((staged.folder / "README.md").read_text()).data.get("configs") or [{}]
        first = next((config for config in configs if config.get("default")), configs[0])
        config = f', "{first["config_name"]}"' if first.get("config_name") else ""
        pin = f', revision="{revision}"' if revision else ""
        lines = ["from datasets import load_dataset", f'data = load_dataset("{repo_id}"{config}{pin})', "print(data)"]
        return "\n".join([*lines, "split = next(iter(data))", "print(data[split][0])"])
    lines = ["from gradio_client import Client", f'client = Client("{repo_id}")', 'puzzle = "…"  # as text']
    answer = ['answer = client.predict(puzzle, api_name="/solve")', 'print(answer["solved"], answer["solution"])']
    return "\n".join([*lines, *answer])


def push_collection(arguments: argparse.Namespace, say: Callable[[str], None]) -> None:
    namespace, title = arguments.repo_id.split("/")
    items = []
    for text in arguments.item:
        kind, _, rest = text.partition(":")
        item, _, note = rest.partition("=")
        if kind not in ("model", "dataset", "space", "paper") or not (REPO_ID.fullmatch(item) or kind == "paper"):
            raise Refused(f"--item {text!r} must be model:USER/NAME, dataset:…, space:… or paper:NUMBER.")
        items.append((kind, item, note or None))
    if arguments.dry_run:
        arguments.dry_run.mkdir(parents=True, exist_ok=True)
        listed = [{"type": kind, "id": item, "note": note} for kind, item, note in items]
        _release.write_json(
            arguments.dry_run / "collection.json",
            {"title": title, "namespace": namespace, "description": arguments.description, "items": listed},
        )
        say(f"Dry run: {arguments.dry_run / 'collection.json'} says what would be created; nothing was sent.")
        return
    url = _hub.publish_collection(
        title, namespace, items, token=need_token(), private=bool(arguments.private),
        description=arguments.description, say=say,
    )  # fmt: skip
    slug = url.split("/collections/")[-1]
    say(f"\n{url}\n\nfrom huggingface_hub import get_collection\n"
        f'collection = get_collection("{slug}")\nprint([item.item_id for item in collection.items])')  # fmt: skip


def push(arguments: argparse.Namespace, say: Callable[[str], None] = print) -> None:
    """Stage, check, and send or write to --dry-run."""
    if not REPO_ID.fullmatch(arguments.repo_id):
        raise Refused(f"--repo-id {arguments.repo_id!r} must be USER/NAME with letters, digits, '-', '_' and '.'.")
    if arguments.kind == "collection":
        return push_collection(arguments, say)
    if arguments.create_pr and (arguments.tag or arguments.revision not in (None, "main")):
        raise Refused("--create-pr proposes a change to main: leave --tag and --revision out until it is merged.")
    token = None if arguments.dry_run else need_token()
    with tempfile.TemporaryDirectory(prefix="air-push-") as temporary:
        staged = stage(arguments, Path(temporary))
        names = staged.files()
        for note in staged.notes:
            say(f"Note: {note}")
        revision = arguments.tag or arguments.revision
        lines = loading_lines(staged, arguments.repo_id, revision)
        if arguments.dry_run:
            _release.publish_folder(Path(temporary), arguments.dry_run)
            say(f"Dry run: {len(names)} files in {arguments.dry_run}, nothing was sent.")
            say("\n".join(f"  {name}" for name in names))
            say(f"\nOnce published, this loads it:\n\n{lines}")
            return None
        model = getattr(arguments, "model", None)
        variables = {"AIR_MODEL": str(model)} if staged.kind == "space" and model and not Path(model).is_dir() else {}
        published = _hub.publish(
            staged, arguments.repo_id, token=token, private=arguments.private, revision=arguments.revision,
            tag=arguments.tag, create_pr=arguments.create_pr, message=arguments.message, variables=variables, say=say,
        )  # fmt: skip
    say(f"\n{published.url}" + (f" (commit {published.commit[:12]})" if published.commit else ""))
    if published.pull_request:
        say("A pull request was opened; once it is merged:")
    say(f"\n{lines}")
    return None


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
    except (Refused, _hub.HubError, ValueError, OSError) as error:
        print(f"push_to_hub: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("push_to_hub: interrupted; repeat the command to go on, what was uploaded is kept.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
