"""Sending a staged folder to the Hub so that it can be repeated, and one sentence where it fails.

`HfApi.upload_folder` sends what is new or changed; large files that arrived are recognised when the command is
repeated, so an interruption costs the file that was under way. The commit names its parent: two writers cannot
overwrite each other unseen.
"""

import contextlib
import hashlib
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from air_model.publishing.safety import Refused
from air_model.publishing.stage import Staged

T = TypeVar("T")
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


class HubError(RuntimeError):
    """What the Hub or the network refused; the message is one sentence for the user."""


@dataclass
class Published:
    url: str
    commit: str
    pull_request: str | None = None


def status_of(error: BaseException) -> int | None:
    """The HTTP status that the Hub answered with; 500 for all from there on."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return min(status, 500) if status else None


def network_error(error: BaseException | None) -> BaseException | None:
    """The failed or broken connection behind an exception, whichever HTTP library reports it, or None."""
    while error is not None:
        library = type(error).__module__.split(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2", "requests")
        if isinstance(error, (ConnectionError, TimeoutError)) or (library and not hasattr(error, "response")):
            return error
        error = error.__cause__ or error.__context__
    return None


def sentence(error: Exception, repo_id: str, kind: str) -> str:
    """An exception of huggingface_hub or of the network in one sentence that says what to do."""
    from huggingface_hub import errors

    status, what = status_of(error), f"{kind} {repo_id}"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so nothing can be sent: unset it, or use --dry-run DIR."
    if isinstance(error, (errors.RevisionNotFoundError, errors.RepositoryNotFoundError)) and status != 401:
        status = 404
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


@contextlib.contextmanager
def in_one_sentence(repo_id: str, kind: str) -> Iterator[None]:
    """Raise HubError for what the Hub or the network refuses; our own mistakes stay what they are."""
    try:
        yield
    except (Refused, AssertionError, TypeError, AttributeError, KeyError):
        raise
    except Exception as error:
        raise HubError(sentence(error, repo_id, kind)) from error


def patiently(call: Callable[..., T], *given: Any, say: Callable[[str], None], what: str, **arguments: Any) -> T:
    """A call to the Hub, again after a pause where that can help: 412, 429, 5xx, broken connections."""
    for attempt in range(1, TRIES + 1):
        try:
            return call(*given, **arguments)
        except Exception as error:
            status = status_of(error)
            temporary = network_error(error) is not None if status is None else status in (412, 429, 500)
            if not temporary or attempt == TRIES or type(error).__name__ == "OfflineModeIsEnabled":
                raise
            asked = error.response.headers.get("Retry-After") if status else None
            wait = float(asked) if asked and re.fullmatch(r"[\d.]+", asked) else 2.0 ** (attempt - 1)
            wait = min(wait, LONGEST_WAIT)
            known = {412: "Somebody else committed meanwhile", None: type(error).__name__}
            reason = known.get(status, f"HTTP {status}")
            say(f"{what}: {reason}, next try in {wait:g} s.")
            time.sleep(wait)
    raise AssertionError("unreachable")


def publish(
    staged: Staged,
    repo_id: str,
    *,
    token: str,
    private: bool | None = None,
    revision: str | None = None,
    tag: str | None = None,
    create_pr: bool = False,
    message: str | None = None,
    variables: dict[str, str] | None = None,
    say: Callable[[str], None] = print,
) -> Published:
    """Create the repository where needed and bring it to the state of the staged folder.

    Args:
        private: for a new repository. revision: a branch, made where missing. tag: marks the commit; never moved.
        create_pr: propose the commit instead; the repository must exist. variables: of a Space.

    Raises:
        Refused: the tag marks other contents. HubError: the Hub or the network said no.
    """
    from huggingface_hub import HfApi, constants

    api, kind = HfApi(token=token, library_name="air-model"), staged.kind
    url = f"{constants.ENDPOINT}/{constants.REPO_TYPES_URL_PREFIXES.get(kind, '')}{repo_id}"

    def ask(call: Callable[..., T], what: str, **arguments: Any) -> T:
        return patiently(call, say=say, what=what, repo_id=repo_id, repo_type=kind, **arguments)

    def send() -> Any:
        info = api.repo_info(repo_id, repo_type=kind, revision=revision or "main")
        if private and not info.private:
            raise Refused(f"{repo_id} exists and is public: make it private in its settings, or leave --private.")
        done = api.upload_folder(
            repo_id=repo_id, repo_type=kind, folder_path=staged.folder, delete_patterns=SUPERSEDED[kind],
            commit_message=message or "air-push", revision=None if create_pr else revision, create_pr=create_pr,
            parent_commit=info.sha,
        )  # fmt: skip
        if done.oid == info.sha:
            say("The repository holds exactly these files already: nothing was sent.")
        return done

    with in_one_sentence(repo_id, kind):
        if not create_pr:
            sdk = {"space_sdk": "gradio"} if kind == "space" else {}
            ask(api.create_repo, "Creating the repository", private=private, exist_ok=True, **sdk)
            if revision not in (None, "main"):
                ask(api.create_branch, "Creating the branch", branch=revision, exist_ok=True)
        if tag is not None:
            tags = {ref.name: ref.target_commit for ref in ask(api.list_repo_refs, "Reading the tags").tags}
            if tag in tags:
                if not ask(is_held, "Reading the tag", api=api, staged=staged, revision=tag):
                    raise Refused(f"The tag {tag} of {repo_id} marks other files and is never moved: use a new one.")
                say(f"The tag {tag} marks exactly these files already: nothing to do.")
                return Published(url, tags[tag])
        done = patiently(send, say=say, what="Sending")
        if tag is not None:
            ask(api.create_tag, "Tagging", tag=tag, revision=done.oid, exist_ok=True)
        for name, value in (variables or {}).items():
            patiently(api.add_space_variable, repo_id, name, value, say=say, what="Setting a variable")
    return Published(done.pr_url or url, done.oid, done.pr_url)


def is_held(api: Any, staged: Staged, repo_id: str, repo_type: str, revision: str) -> bool:
    """Does a revision hold every staged file? By git's or LFS's checksum, without downloading."""
    from huggingface_hub.utils.sha import git_hash

    tree = api.list_repo_tree(repo_id, repo_type=repo_type, revision=revision, recursive=True)
    there = {entry.path: entry for entry in tree if hasattr(entry, "blob_id")}

    def same(name: str) -> bool:
        data, remote = (staged.folder / name).read_bytes(), there.get(name)
        if remote is None or remote.lfs is None:
            return remote is not None and git_hash(data) == remote.blob_id
        return hashlib.sha256(data).hexdigest() == remote.lfs["sha256"]

    return all(map(same, staged.files()))


def publish_collection(
    title: str, namespace: str, items: list[tuple[str, str, str | None]], *, token: str, private: bool,
    description: str | None = None, say: Callable[[str], None] = print,
) -> str:  # fmt: skip
    """Create or complete a collection; returns its slug.

    Args:
        items: (repository type, id, note). Items that are there already stay as they are.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token, library_name="air-model")
    with in_one_sentence(f"{namespace}/{title}", "collection"):
        slug = patiently(
            api.create_collection, title, namespace=namespace, description=description, private=private,
            exists_ok=True, say=say, what="Creating the collection",
        ).slug  # fmt: skip
        for kind, item, note in items:
            patiently(
                api.add_collection_item, slug, item, kind, note=note, exists_ok=True, say=say, what=f"Adding {item}"
            )
    return slug
