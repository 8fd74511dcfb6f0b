"""What scripts/push_to_hub.py does: stage a folder, send it so that it can be repeated, one sentence where that fails.

`HfApi.upload_folder` sends what is new or changed; large files that arrived are recognised when the command is
repeated, so an interruption costs the file that was under way. The commit names its parent: two writers cannot
overwrite each other unseen.
"""

import argparse
import contextlib
import itertools
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi, RepoCard, constants, errors

from air_model.configuration_air import AirConfig
from air_model.publishing.card import load_lines
from air_model.publishing.safety import Refused, refuse_unsafe
from air_model.publishing.stage import Staged, publish_folder, stage_dataset, stage_model, stage_space
from air_model.records import write_json

T = TypeVar("T")
REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")
TRIES = 5
LONGEST_WAIT = 60.0  # seconds, whatever the Hub's Retry-After says
# Earlier shards that a new commit would otherwise leave beside the new ones.
SUPERSEDED = {"model": ["*.safetensors", "model.safetensors.index.json"], "dataset": ["*.parquet"], "space": None}
KEPT = "what was uploaded is kept."
SENTENCES = {  # by HTTP status; {what} is the repository and its kind
    # The Hub also answers 401 for repositories that the token may not see.
    401: "The Hub does not accept the token in HF_TOKEN for the {what} (401): check it, or make one with write "
    "permission under Settings, Access Tokens.",
    403: "The token in HF_TOKEN may not write to the {what} (403): use one with write permission there.",
    404: "There is no {what} on the Hub that this token can see (404): check --repo-id and --revision.",
    409: "The {what} is being created or changed by someone else (409): try again in a minute.",
    412: "Someone else keeps committing to the {what} (412): look at what changed there, then repeat the command.",
    429: f"The Hub asked for a pause (429) and {TRIES} tries were not enough: repeat the command later; {KEPT}",
    500: f"The Hub has a problem of its own (5xx): repeat the command later; {KEPT}",
}


class HubError(OSError):
    """What the Hub or the network refused; the message is one sentence for the user."""


def push(arguments: argparse.Namespace) -> None:
    """Publish what the command line of scripts/push_to_hub.py names.

    Raises:
        Refused: it must not be published so. HubError: the Hub or the network said no.
    """
    if not REPO_ID.fullmatch(arguments.repo_id):
        raise Refused(f"--repo-id {arguments.repo_id!r} must be USER/NAME with letters, digits, '-', '_' and '.'.")
    if arguments.kind == "collection":
        return push_collection(arguments)
    if arguments.create_pr and (arguments.tag or arguments.revision not in (None, "main")):
        raise Refused("--create-pr proposes a change to main: leave --tag and --revision out until it is merged.")
    token = None if arguments.dry_run else need_token()
    with tempfile.TemporaryDirectory(prefix="air-push-") as temporary:
        staged = stage(arguments, Path(temporary))
        for note in staged.notes:
            print(f"Note: {note}")
        lines = loading_lines(staged, arguments.repo_id, arguments.tag or arguments.revision)
        if arguments.dry_run:
            publish_folder(staged.folder, arguments.dry_run)
            names = staged.files()
            print(f"Dry run: {len(names)} files in {arguments.dry_run}, nothing was sent.")
            print("\n".join(f"  {name}" for name in names))
            print(f"\nOnce published, this loads it:\n\n{lines}")
            return
        url, commit = publish(staged, arguments, token)
    print(f"\n{url} (commit {commit[:12]})")
    if arguments.create_pr:
        print("A pull request was opened; once it is merged:")
    print(f"\n{lines}")


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
    source, repo_id = arguments.source, arguments.repo_id
    if arguments.kind == "model":
        given, figures = arguments.evaluation, not arguments.no_figures
        staged = stage_model(
            source, folder, repo_id=repo_id, evaluations=given, datasets=arguments.dataset, figures=figures
        )
    elif arguments.kind == "dataset":
        staged = stage_dataset(source, folder, repo_id=repo_id)
    else:
        staged = stage_space(source, folder, model=arguments.model)
    refuse_unsafe(folder, source)
    return staged


def loading_lines(staged: Staged, repo_id: str, revision: str | None) -> str:
    """Five lines or fewer that load what was published."""
    if staged.kind == "model":
        return load_lines(AirConfig.from_pretrained(staged.folder), repo_id, revision)
    if staged.kind == "dataset":
        configs = RepoCard((staged.folder / "README.md").read_text(encoding="utf-8")).data.get("configs") or [{}]
        first = next((config for config in configs if config.get("default")), configs[0])
        config = f', "{first["config_name"]}"' if first.get("config_name") else ""
        pin = f', revision="{revision}"' if revision else ""
        lines = ["from datasets import load_dataset", f'data = load_dataset("{repo_id}"{config}{pin})', "print(data)"]
        lines += ["split = next(iter(data))", "print(data[split][0])"]
    else:
        lines = ["from gradio_client import Client", f'client = Client("{repo_id}")', 'puzzle = "…"  # as text']
        lines += ['answer = client.predict(puzzle, api_name="/solve")', 'print(answer["solved"], answer["solution"])']
    return "\n".join(lines)


def publish(staged: Staged, arguments: argparse.Namespace, token: str) -> tuple[str, str]:
    """Create the repository where needed and bring it to the state of the staged folder.

    Returns:
        the URL of the repository or the pull request, and the commit.
    """
    api = HfApi(token=token, library_name="air-model")
    repo_id, kind, tag = arguments.repo_id, staged.kind, arguments.tag
    here = {"repo_id": repo_id, "repo_type": kind}
    url = f"{constants.ENDPOINT}/{constants.REPO_TYPES_URL_PREFIXES.get(kind, '')}{repo_id}"
    branch = None if arguments.create_pr else arguments.revision

    def send() -> Any:
        info = api.repo_info(**here, revision=branch or "main")
        if arguments.private and not info.private:
            raise Refused(f"{repo_id} exists and is public: make it private in its settings, or leave --private.")
        done = api.upload_folder(
            **here, folder_path=staged.folder, delete_patterns=SUPERSEDED[kind], revision=branch,
            commit_message=arguments.message or "air-push", create_pr=arguments.create_pr, parent_commit=info.sha,
        )  # fmt: skip
        if done.oid == info.sha:
            print("The repository holds exactly these files already: nothing was sent.")
        return done

    with in_one_sentence(repo_id, kind):
        if not arguments.create_pr:
            sdk = "gradio" if kind == "space" else None
            new = {"private": arguments.private, "space_sdk": sdk, "exist_ok": True}
            patiently("Creating the repository", api.create_repo, **here, **new)
            if branch not in (None, "main"):
                patiently("Creating the branch", api.create_branch, **here, branch=branch, exist_ok=True)
        if tag is not None:
            refs = patiently("Reading the tags", api.list_repo_refs, **here)
            tags = {ref.name: ref.target_commit for ref in refs.tags}
            if tag in tags:
                read = api.verify_repo_checksums
                held = patiently("Reading the tag", read, **here, revision=tag, local_dir=staged.folder)
                if held.mismatches or held.extra_paths:
                    raise Refused(f"The tag {tag} of {repo_id} marks other files and is never moved: use a new one.")
                print(f"The tag {tag} marks exactly these files already: nothing to do.")
                return url, tags[tag]
        done = patiently("Sending", send)
        if tag is not None:
            patiently("Tagging", api.create_tag, **here, tag=tag, revision=done.oid, exist_ok=True)
        model = arguments.model if kind == "space" else None
        if model and not Path(model).is_dir():
            patiently("Setting a variable", api.add_space_variable, repo_id, "AIR_MODEL", model)
    return done.pr_url or url, done.oid


def push_collection(arguments: argparse.Namespace) -> None:
    """Create or complete a collection; items that are there already stay as they are."""
    namespace, title = arguments.repo_id.split("/")
    items = []
    for text in arguments.item:
        kind, _, rest = text.partition(":")
        item, _, note = rest.partition("=")
        if kind not in ("model", "dataset", "space", "paper") or not (REPO_ID.fullmatch(item) or kind == "paper"):
            raise Refused(f"--item {text!r} must be model:USER/NAME, dataset:…, space:… or paper:NUMBER.")
        items.append({"type": kind, "id": item, "note": note or None})
    about = {"title": title, "namespace": namespace, "description": arguments.description}
    if arguments.dry_run:
        file = write_json(arguments.dry_run / "collection.json", {**about, "items": items})
        print(f"Dry run: {file} says what would be created; nothing was sent.")
        return
    api = HfApi(token=need_token(), library_name="air-model")
    with in_one_sentence(arguments.repo_id, "collection"):
        about["private"] = bool(arguments.private)
        made = patiently("Creating the collection", api.create_collection, **about, exists_ok=True)
        for one in items:
            item = {"item_id": one["id"], "item_type": one["type"], "note": one["note"]}
            patiently(f"Adding {one['id']}", api.add_collection_item, made.slug, **item, exists_ok=True)
    print(f"\n{constants.ENDPOINT}/collections/{made.slug}\n\nfrom huggingface_hub import get_collection")
    print(f'collection = get_collection("{made.slug}")\nprint([item.item_id for item in collection.items])')


# ---- patience, and what went wrong in one sentence ------------------------------------------------------------------


def patiently(what: str, call: Callable[..., T], *given: Any, **arguments: Any) -> T:
    """A call to the Hub, again after a pause where that can help: 412, 429, 5xx, broken connections."""
    for attempt in itertools.count(1):
        try:
            return call(*given, **arguments)
        except Exception as error:
            status = status_of(error)
            temporary = network_error(error) is not None if status is None else status in (412, 429, 500)
            if not temporary or attempt == TRIES:
                raise
            asked = error.response.headers.get("Retry-After") if status else None
            wait = float(asked) if asked and re.fullmatch(r"[\d.]+", asked) else 2.0 ** (attempt - 1)
            wait = min(wait, LONGEST_WAIT)
            known = {412: "Somebody else committed meanwhile", None: type(error).__name__}
            print(f"{what}: {known.get(status, f'HTTP {status}')}, next try in {wait:g} s.")
            time.sleep(wait)


@contextlib.contextmanager
def in_one_sentence(repo_id: str, kind: str) -> Iterator[None]:
    """Raise HubError for what the Hub or the network refuses; our own mistakes stay what they are."""
    try:
        yield
    except (Refused, AssertionError, TypeError, AttributeError, KeyError):
        raise
    except Exception as error:
        raise HubError(sentence(error, repo_id, f"{kind} {repo_id}")) from error


def sentence(error: Exception, repo_id: str, what: str) -> str:
    """An exception of huggingface_hub or of the network in one sentence that says what to do."""
    status = status_of(error)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so nothing can be sent: unset it, or use --dry-run DIR."
    if status in SENTENCES:
        return SENTENCES[status].format(what=what)
    if isinstance(error, errors.HFValidationError):
        return f"{repo_id!r} is no repository name: use USER/NAME with letters, digits, '-', '_' and '.'."
    if (broken := network_error(error)) is not None:
        return (
            f"The Hub could not be reached or the connection broke ({type(broken).__name__}): check the network and "
            f"repeat the command; {KEPT}"
        )
    return f"The Hub refused the {what}: {' '.join(str(error).split())[:300]}"


def status_of(error: BaseException) -> int | None:
    """The HTTP status that the Hub answered with; 500 for all from there on."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return min(status, 500) if status else None


def network_error(error: BaseException | None) -> BaseException | None:
    """The failed or broken connection behind an exception, whichever HTTP library reports it, or None."""
    while error is not None and type(error).__name__ != "OfflineModeIsEnabled":
        of_client = type(error).__module__.startswith(("httpx", "httpcore")) and not hasattr(error, "response")
        if of_client or isinstance(error, (ConnectionError, TimeoutError)):
            return error
        error = error.__cause__ or error.__context__
    return None
