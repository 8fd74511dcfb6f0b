"""Sending a staged folder to the Hub so that it can be repeated: one commit, and one sentence where it fails.

Large files are uploaded one by one before the commit and are recognised by their content when the command is repeated,
so an interruption costs the file that was under way. The commit names its parent: two writers cannot overwrite each
other unseen.
"""

import hashlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from air_model.scripts._release import Refused, Staged

T = TypeVar("T")
TRIES = 5
SMALL = 100_000  # bytes; such files travel with the commit
LONGEST_WAIT = 60.0  # seconds, whatever the Hub's Retry-After says
# Earlier shards that a new commit would otherwise leave beside the new ones.
SUPERSEDED = {
    "model": r".*\.safetensors|model\.safetensors\.index\.json",
    "dataset": r".*\.parquet",
    "space": r"(?!)",
}


class HubError(RuntimeError):
    """What the Hub or the network refused; the message is one sentence for the user."""


@dataclass
class Published:
    url: str
    commit: str
    pull_request: str | None
    changed: list[str]


def sentence(error: Exception, repo_id: str, kind: str) -> str:
    """An exception of huggingface_hub or of the network in one sentence that says what to do."""
    from huggingface_hub import errors

    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so nothing can be sent: unset it, or use --dry-run DIR."
    if status == 401 and not isinstance(error, errors.GatedRepoError):
        # The Hub also answers 401 for repositories that the token may not see.
        return (
            f"The Hub does not accept the token in HF_TOKEN for the {kind} {repo_id} (401): check it, or make one"
            " with write permission under Settings, Access Tokens."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"The {kind} {repo_id} has no such revision (404): check --revision."
    if isinstance(error, errors.RepositoryNotFoundError) or status == 404:
        return f"There is no {kind} {repo_id} on the Hub that this token can see (404): check --repo-id."
    if status == 403:
        return (
            f"The token in HF_TOKEN may not write to the {kind} {repo_id} (403): use one with write permission there."
        )
    if status == 409:
        return f"The {kind} {repo_id} is being created or changed by someone else (409): try again in a minute."
    if status == 412:
        return (
            f"Someone else keeps committing to {repo_id} (412): look at what changed there, then repeat the command."
        )
    if status == 429:
        return (
            f"The Hub asked for a pause (429) and {TRIES} tries were not enough: repeat the command later; what was "
            "uploaded is kept."
        )
    if status is not None and status >= 500:
        return f"The Hub has a problem of its own ({status}): repeat the command later; what was uploaded is kept."
    if isinstance(error, errors.HFValidationError):
        return f"{repo_id!r} is no repository name: use USER/NAME with letters, digits, '-', '_' and '.'."
    if (broken := network_error(error)) is not None:
        return (
            f"The Hub could not be reached or the connection broke ({type(broken).__name__}): check the network and "
            "repeat the command; what was uploaded is kept."
        )
    text = " ".join(str(error).split())
    return f"The Hub refused the {kind} {repo_id}: {text[:300]}"


def network_error(error: BaseException | None) -> BaseException | None:
    """The failed or broken connection behind an exception, whichever HTTP library reports it, or None."""
    while error is not None:
        library = type(error).__module__.split(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2", "requests")
        if isinstance(error, (ConnectionError, TimeoutError)) or (library and not hasattr(error, "response")):
            return error
        error = error.__cause__ or error.__context__
    return None


def patiently(call: Callable[[], T], say: Callable[[str], None], what: str) -> T:
    """Run a call to the Hub; wait and try again where waiting can help (429, 5xx, broken connections)."""
    for attempt in range(1, TRIES + 1):
        try:
            return call()
        except Exception as error:
            response = getattr(error, "response", None)
            status = getattr(response, "status_code", None)
            temporary = network_error(error) is not None if status is None else status == 429 or status >= 500
            temporary = temporary and type(error).__name__ != "OfflineModeIsEnabled"
            if not temporary or attempt == TRIES:
                raise
            asked = response.headers.get("Retry-After") if response is not None else None
            wait = min(
                float(asked) if asked and re.fullmatch(r"[\d.]+", asked) else 2.0 ** (attempt - 1), LONGEST_WAIT
            )
            say(f"{what}: {'HTTP ' + str(status) if status else type(error).__name__}, next try in {wait:g} s.")
            time.sleep(wait)
    raise AssertionError("unreachable")


def is_same(path: Path, remote: Any) -> bool:
    """Does a remote file have this content? By git's or LFS's checksum, without downloading."""
    if path.stat().st_size != remote.size:
        return False
    data = path.read_bytes()
    if remote.lfs is not None:
        return hashlib.sha256(data).hexdigest() == remote.lfs["sha256"]
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() == remote.blob_id


def remote_files(api: Any, repo_id: str, kind: str, revision: str) -> dict[str, Any]:
    """Path -> RepoFile of everything in a revision."""
    tree = api.list_repo_tree(repo_id, repo_type=kind, revision=revision, recursive=True)
    return {entry.path: entry for entry in tree if hasattr(entry, "blob_id")}


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
    """Create the repository where needed and bring it to the state of the staged folder in one commit.

    Args:
        private: for a new repository. revision: a branch, made where missing. tag: marks the commit; never moved.
        create_pr: propose the commit instead; the repository must exist. variables: of a Space.

    Raises:
        Refused: the tag marks other contents. HubError: the Hub or the network said no.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token, library_name="air-model")
    try:
        return _publish(api, staged, repo_id, private, revision, tag, create_pr, message, variables or {}, say)
    except (Refused, KeyboardInterrupt):
        raise
    except Exception as error:
        if isinstance(error, (AssertionError, TypeError, AttributeError, KeyError)):
            raise  # ours
        raise HubError(sentence(error, repo_id, staged.kind)) from error


def _publish(
    api: Any,
    staged: Staged,
    repo_id: str,
    private: bool | None,
    revision: str | None,
    tag: str | None,
    create_pr: bool,
    message: str | None,
    variables: dict[str, str],
    say: Callable[[str], None],
) -> Published:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, constants

    kind, names = staged.kind, staged.files()
    prefix = {"model": "", "dataset": "datasets/", "space": "spaces/"}[kind]
    url = f"{constants.ENDPOINT}/{prefix}{repo_id}"

    def ask(call: Callable[..., T], what: str, **arguments: Any) -> T:
        return patiently(lambda: call(repo_id=repo_id, repo_type=kind, **arguments), say, what)

    if create_pr:
        ask(api.repo_info, "Looking at the repository")
    else:
        sdk = {"space_sdk": "gradio"} if kind == "space" else {}
        ask(api.create_repo, "Creating the repository", private=private, exist_ok=True, **sdk)
    if revision not in (None, "main") and not create_pr:
        ask(api.create_branch, "Creating the branch", branch=revision, exist_ok=True)
    branch = revision or "main"

    if tag is not None:
        refs = ask(api.list_repo_refs, "Reading the tags")
        if tag in {ref.name for ref in refs.tags}:
            there = patiently(lambda: remote_files(api, repo_id, kind, tag), say, "Reading the tag")
            if any(name not in there or not is_same(staged.folder / name, there[name]) for name in names):
                raise Refused(
                    f"The tag {tag} of {repo_id} marks other contents, and tags are never moved: use a new one."
                )
            say(f"The tag {tag} marks exactly these files already: nothing to do.")
            commit = next(ref.target_commit for ref in refs.tags if ref.name == tag)
            return Published(url, commit, None, [])

    for tries in range(1, TRIES + 1):
        info = ask(api.repo_info, "Reading the repository", revision=branch)
        if private and not info.private:
            raise Refused(
                f"{repo_id} exists and is public: make it private in its settings first, or leave --private."
            )
        head = info.sha
        there = patiently(lambda: remote_files(api, repo_id, kind, branch), say, "Reading the files")
        changed = [n for n in names if n not in there or not is_same(staged.folder / n, there[n])]
        stale = [n for n in there if n not in names and re.fullmatch(SUPERSEDED[kind], n)]
        if not changed and not stale:
            say("The repository holds exactly these files already: nothing was sent.")
            commit, pull_request = head, None
            break
        additions = [CommitOperationAdd(name, str(staged.folder / name)) for name in changed]
        # Large files first and one by one: each that arrived is skipped when the command is repeated.
        large = [op for op in additions if (staged.folder / op.path_in_repo).stat().st_size > SMALL]
        for number, addition in enumerate(large, start=1):
            size = (staged.folder / addition.path_in_repo).stat().st_size
            say(f"Uploading {number} of {len(large)}: {addition.path_in_repo} ({size:,} bytes)")
            # create_pr, because a proposal must not need the right to write.
            arguments = {"additions": [addition], "revision": branch, "create_pr": create_pr}
            ask(api.preupload_lfs_files, f"Uploading {addition.path_in_repo}", **arguments)
        say(f"Committing {len(changed)} new or changed files" + (f", {len(stale)} deleted." if stale else "."))
        operations = [*additions, *(CommitOperationDelete(n) for n in stale)]
        try:
            done = ask(
                api.create_commit, "Committing", operations=operations, commit_message=message or "air-push",
                revision=branch, create_pr=create_pr, parent_commit=head,
            )  # fmt: skip
        except Exception as error:
            status = getattr(getattr(error, "response", None), "status_code", None)
            if status != 412 or tries == TRIES:
                raise
            say("Somebody else committed meanwhile: looking again.")
            continue
        commit, pull_request = done.oid, done.pr_url
        break
    if tag is not None:
        ask(api.create_tag, "Tagging", tag=tag, revision=commit, exist_ok=True)
    for name, value in variables.items():
        patiently(lambda: api.add_space_variable(repo_id, name, value), say, "Setting a variable")  # noqa: B023
    return Published(pull_request or url, commit, pull_request, changed)


def publish_collection(
    title: str, namespace: str, items: list[tuple[str, str, str | None]], *, token: str, private: bool,
    description: str | None = None, say: Callable[[str], None] = print,
) -> str:  # fmt: skip
    """Create or complete a collection; returns its URL.

    Args:
        items: (repository type, id, note). Items that are there already stay as they are.
    """
    from huggingface_hub import HfApi, constants

    api = HfApi(token=token, library_name="air-model")
    name = f"{namespace}/{title}"
    try:
        collection = patiently(
            lambda: api.create_collection(title, namespace=namespace, description=description, private=private,
                                          exists_ok=True),
            say, "Creating the collection",
        )  # fmt: skip
        for kind, item, note in items:
            patiently(
                lambda: api.add_collection_item(collection.slug, item, kind, note=note, exists_ok=True),  # noqa: B023
                say,
                f"Adding {item}",
            )
    except Exception as error:
        if isinstance(error, (AssertionError, TypeError, AttributeError, KeyError)):
            raise
        raise HubError(sentence(error, name, "collection")) from error
    return f"{constants.ENDPOINT}/collections/{collection.slug}"
