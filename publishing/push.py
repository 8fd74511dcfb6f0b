"""What scripts/push_to_hub.py does with its arguments: stage, check, then send, or write to --dry-run."""

import argparse
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

from air_model.publishing.card import load_lines
from air_model.publishing.safety import Refused, refuse_unsafe
from air_model.publishing.stage import Staged, publish_folder, stage_dataset, stage_model, stage_space
from air_model.publishing.upload import publish, publish_collection
from air_model.records import write_json

REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")


def need_token() -> str:
    token = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN")
    if not token:
        raise Refused(
            "The environment variable HF_TOKEN is not set, so nothing was sent: make a token with write permission "
            "under Settings, Access Tokens on the Hub, or look first with --dry-run DIR."
        )
    return token


def push(arguments: argparse.Namespace, say: Callable[[str], None] = print) -> None:
    """Publish what the command line of scripts/push_to_hub.py names.

    Raises:
        Refused: it must not be published so. HubError: the Hub or the network said no.
    """
    if not REPO_ID.fullmatch(arguments.repo_id):
        raise Refused(f"--repo-id {arguments.repo_id!r} must be USER/NAME with letters, digits, '-', '_' and '.'.")
    if arguments.kind == "collection":
        return push_collection(arguments, say)
    if arguments.create_pr and (arguments.tag or arguments.revision not in (None, "main")):
        raise Refused("--create-pr proposes a change to main: leave --tag and --revision out until it is merged.")
    token = None if arguments.dry_run else need_token()
    with tempfile.TemporaryDirectory(prefix="air-push-") as temporary:
        staged = stage(arguments, Path(temporary))
        for note in staged.notes:
            say(f"Note: {note}")
        lines = loading_lines(staged, arguments.repo_id, arguments.tag or arguments.revision)
        if arguments.dry_run:
            publish_folder(staged.folder, arguments.dry_run)
            names = staged.files()
            say(f"Dry run: {len(names)} files in {arguments.dry_run}, nothing was sent.")
            say("\n".join(f"  {name}" for name in names))
            say(f"\nOnce published, this loads it:\n\n{lines}")
            return
        model = getattr(arguments, "model", None)
        shown = staged.kind == "space" and model and not Path(model).is_dir()
        published = publish(
            staged, arguments.repo_id, token=token, private=arguments.private, revision=arguments.revision,
            tag=arguments.tag, create_pr=arguments.create_pr, message=arguments.message, say=say,
            variables={"AIR_MODEL": str(model)} if shown else {},
        )  # fmt: skip
    say(f"\n{published.url} (commit {published.commit[:12]})")
    if published.pull_request:
        say("A pull request was opened; once it is merged:")
    say(f"\n{lines}")


def stage(arguments: argparse.Namespace, folder: Path) -> Staged:
    """The folder that the command publishes, complete and checked."""
    repo_id = arguments.repo_id
    if arguments.kind == "model":
        source, given, datasets = arguments.model, arguments.evaluation, arguments.dataset
        figures = not arguments.no_figures
        staged = stage_model(source, folder, repo_id=repo_id, evaluations=given, datasets=datasets, figures=figures)
    elif arguments.kind == "dataset":
        source = arguments.data
        staged = stage_dataset(source, folder, repo_id=repo_id)
    else:
        source = arguments.space
        staged = stage_space(source, folder, model=arguments.model)
    refuse_unsafe(folder, source)
    return staged


def loading_lines(staged: Staged, repo_id: str, revision: str | None) -> str:
    """Five lines or fewer that load what was published."""
    if staged.kind == "model":
        from air_model.configuration_air import AirConfig

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
    from huggingface_hub import constants

    namespace, title = arguments.repo_id.split("/")
    items = []
    for text in arguments.item:
        kind, _, rest = text.partition(":")
        item, _, note = rest.partition("=")
        if kind not in ("model", "dataset", "space", "paper") or not (REPO_ID.fullmatch(item) or kind == "paper"):
            raise Refused(f"--item {text!r} must be model:USER/NAME, dataset:…, space:… or paper:NUMBER.")
        items.append((kind, item, note or None))
    if arguments.dry_run:
        listed = [{"type": kind, "id": item, "note": note} for kind, item, note in items]
        about = {"title": title, "namespace": namespace, "description": arguments.description}
        write_json(arguments.dry_run / "collection.json", {**about, "items": listed})
        say(f"Dry run: {arguments.dry_run / 'collection.json'} says what would be created; nothing was sent.")
        return
    slug = publish_collection(
        title, namespace, items, token=need_token(), private=bool(arguments.private),
        description=arguments.description, say=say,
    )  # fmt: skip
    say(f"\n{constants.ENDPOINT}/collections/{slug}\n\nfrom huggingface_hub import get_collection\n"
        f'collection = get_collection("{slug}")\nprint([item.item_id for item in collection.items])')  # fmt: skip
