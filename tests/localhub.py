"""A Hugging Face Hub on 127.0.0.1, in memory, for round trips with the real clients; standard library only.

    with LocalHub() as hub:
        subprocess.run([...], env=hub.environment(tmp_path))      # HF_ENDPOINT, HF_TOKEN, HF_HOME ...
        hub.repo("model", "user/air").files("main")["config.json"]

It keeps repositories with commits, branches, tags and pull requests, stores large files by checksum as Git LFS does,
and knows users, tokens and private repositories. `hub.faults` makes it misbehave: answer 429 or 500, break a
connection in the middle of an upload, or keep a client waiting. Clients need HF_HUB_DISABLE_XET=1 (no xet storage
here), and must get HF_ENDPOINT before they import huggingface_hub: run them in processes of their own.
"""

import base64
import collections
import hashlib
import json
import os
import re
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, parse_qsl, unquote, urlsplit

LFS_SUFFIXES = (".safetensors", ".parquet", ".arrow", ".bin", ".png", ".gif")
LFS_SIZE = 100_000  # bytes; larger files are LFS whatever their name
DATE = "2026-01-01T00:00:00.000Z"
WRITER, READER, OTHER = "test-writer", "test-reader", "test-other"  # tokens of the users below


class User(NamedTuple):
    name: str
    writes: bool


USERS = {WRITER: User("user", True), READER: User("user", False), OTHER: User("other", True)}


class HubRefusal(Exception):
    """An error answer: status, the Hub's error code, message."""

    def __init__(self, status: int, code: str, message: str) -> None:
        self.status, self.code, self.message = status, code, message


class Blob(NamedTuple):
    data: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def oid(self) -> str:
        """git's checksum: of the file, or of the pointer that stands for an LFS file."""
        data = self.data
        if self.lfs:
            data = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(data)}\n".encode()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    def entry(self, path: str) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": path, "oid": self.oid, "size": len(self.data)}
        if self.lfs:
            entry["lfs"] = {"oid": self.sha256, "size": len(self.data), "pointerSize": 130}
        return entry


class Commit(NamedTuple):
    files: dict[str, Blob]
    parent: str | None
    title: str


class Repo:
    """Commits by checksum; branches, tags and pull requests (refs/pr/N) are names for them."""

    def __init__(self, kind: str, name: str, owner: str, private: bool) -> None:
        self.kind, self.name, self.owner, self.private = kind, name, owner, private
        self.commits: dict[str, Commit] = {}
        self.branches: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.variables: dict[str, str] = {}
        self.commit("main", {".gitattributes": Blob(b"*.safetensors filter=lfs\n", False)}, [], "initial commit")

    def resolve(self, revision: str) -> str:
        if sha := self.branches.get(revision) or self.tags.get(revision):
            return sha
        for sha in self.commits:
            if len(revision) >= 7 and sha.startswith(revision):
                return sha
        raise HubRefusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return {path: blob.data for path, blob in self.blobs(revision).items()}

    def blobs(self, revision: str) -> dict[str, Blob]:
        return self.commits[self.resolve(revision)].files

    def commit(self, branch: str, add: dict[str, Blob], delete: list[str], title: str) -> str:
        parent = self.branches.get(branch)
        files = dict(self.commits[parent].files) if parent else {}
        for gone in delete:
            for path in [p for p in files if p == gone or p.startswith(gone.rstrip("/") + "/")]:
                del files[path]
        files |= add
        text = f"{len(self.commits)} {parent} {title} {[(p, b.oid) for p, b in sorted(files.items())]}"
        sha = hashlib.sha1(text.encode()).hexdigest()
        self.commits[sha] = Commit(files, parent, title)
        self.branches[branch] = sha
        return sha


@dataclass
class Fault:
    """Misbehaviour for requests whose "METHOD path" matches: a status, "drop" (break the connection), or "hold"."""

    pattern: str
    action: int | str
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)
    seen: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)


class LocalHub:
    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.collections: dict[str, dict[str, Any]] = {}
        self.large: dict[str, bytes] = {}  # LFS objects by sha256
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str, int]] = []
        self.lock = threading.RLock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> "LocalHub":
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        for fault in self.faults:
            fault.release.set()
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home: Path, token: str | None = WRITER, **more: str) -> dict[str, str]:
        """Environment of a client process; caches and tokens lie under `home`, nothing else is reached."""
        keep = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING_FACE"))}
        fixed = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}
        fixed |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "127.0.0.1"}
        fixed |= {"no_proxy": "127.0.0.1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
        return {**keep, **fixed, **({} if token is None else {"HF_TOKEN": token}), **more}

    def repo(self, kind: str, name: str) -> Repo:
        return self.repos[kind, name]

    def count(self, pattern: str) -> int:
        """Requests so far whose "METHOD path" matches."""
        return sum(bool(re.search(pattern, f"{method} {path}")) for method, path, _ in self.requests)


Route = tuple[str, re.Pattern, Callable]
ROUTES: list[Route] = []
KIND = r"(?P<kind>models|datasets|spaces)"
NAME = r"(?P<name>[^/]+/[^/]+)"


def route(methods: str, pattern: str) -> Callable:
    """Register a method of _Handler for paths; the first match counts."""

    def register(function: Callable) -> Callable:
        ROUTES.append((methods, re.compile(pattern), function))
        return function

    return register


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LocalHub

    def log_message(self, *_: Any) -> None: ...

    # ---- plumbing --------------------------------------------------------------------------------------------------

    def handle_any(self) -> None:
        parts = urlsplit(self.path)
        self.query = dict(parse_qsl(parts.query, keep_blank_values=True))
        call = f"{self.command} {parts.path}"
        fault = next((f for f in self.hub.faults if f.times > 0 and re.search(f.pattern, call)), None)
        if fault is not None:
            fault.times -= 1
            fault.seen.set()
            if fault.action == "hold":
                fault.release.wait(60)
            if fault.action in ("drop", "hold"):
                self.hub.requests.append((self.command, parts.path, 0))
                self.close_connection = True
                self.connection.close()
                return
        self.body = self.read_body()
        if fault is not None:
            self.reply(int(fault.action), {"error": "by request of the test"}, fault.headers)
            return
        with self.hub.lock:
            try:
                self.user = self.authenticate()
                for methods, pattern, function in ROUTES:
                    if self.command in methods.split("|") and (match := pattern.fullmatch(parts.path)):
                        function(self, **match.groupdict())
                        return
                raise HubRefusal(404, "EntryNotFound", f"localhub has no route {call}")
            except HubRefusal as refusal:
                headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
                self.reply(refusal.status, {"error": refusal.message}, headers if refusal.code else {})

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def reply(
        self, status: int, body: Any = b"", headers: dict[str, str] | None = None, kind: str = "application/json"
    ) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.hub.requests.append((self.command, urlsplit(self.path).path, status))
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def authenticate(self) -> User | None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in USERS:
            raise HubRefusal(401, "", "Invalid username or password.")
        return USERS.get(token)

    def find(self, kind: str | None, name: str, write: bool = False) -> Repo:
        """The repository, if this user may see it (and write to it)."""
        repo = self.hub.repos.get(((kind or "models")[:-1], unquote(name)))
        hidden = repo is not None and repo.private and (self.user is None or self.user.name != repo.owner)
        if repo is None or hidden:
            # Nobody learns whether a private repository exists.
            raise HubRefusal(404 if self.user else 401, "RepoNotFound", "Repository not found")
        if write and (self.user is None or not self.user.writes or self.user.name != repo.owner):
            raise HubRefusal(403 if self.user else 401, "", "You have no rights to write here.")
        return repo

    # ---- accounts and repositories ---------------------------------------------------------------------------------

    @route("GET", r"/api/whoami-v2")
    def whoami(self) -> None:
        if self.user is None:
            raise HubRefusal(401, "", "Invalid username or password.")
        role = "write" if self.user.writes else "read"
        self.reply(200, {"type": "user", "name": self.user.name, "orgs": [], "auth": {"accessToken": {"role": role}}})

    @route("POST", r"/api/validate-yaml")
    def validate_yaml(self) -> None:
        self.reply(200, {"errors": [], "warnings": []})

    @route("POST", r"/api/repos/create")
    def create(self) -> None:
        asked = json.loads(self.body)
        kind, owner = asked.get("type") or "model", asked.get("organization") or (self.user and self.user.name)
        if self.user is None:
            raise HubRefusal(401, "", "Invalid username or password.")
        if not self.user.writes or owner != self.user.name:
            raise HubRefusal(403, "", f"You don't have the rights to create a {kind} under the namespace {owner}.")
        name = f"{owner}/{asked['name'].split('/')[-1]}"
        url = f"{self.hub.url}/{'' if kind == 'model' else kind + 's/'}{name}"
        if (kind, name) in self.hub.repos:
            self.reply(409, {"error": "You already created this repo", "url": url})
            return
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        self.hub.repos[kind, name] = Repo(kind, name, owner, private)
        self.reply(200, {"url": url, "name": name, "id": name})

    @route("GET", rf"/api/{KIND}/{NAME}(?:/revision/(?P<revision>[^/]+))?")
    def info(self, kind: str, name: str, revision: str | None) -> None:
        repo = self.find(kind, name)
        sha = repo.resolve(unquote(revision or "main"))
        files = [
            {"rfilename": path, **({"size": len(b.data), "blobId": b.oid} if "blobs" in self.query else {})}
            for path, b in sorted(repo.commits[sha].files.items())
        ]
        self.reply(
            200,
            {
                "_id": "0" * 24,
                "id": repo.name,
                "modelId": repo.name,
                "author": repo.owner,
                "sha": sha,
                "private": repo.private,
                "gated": False,
                "disabled": False,
                "tags": [],
                "downloads": 0,
                "likes": 0,
                "lastModified": DATE,
                "createdAt": DATE,
                "siblings": files,
                "sdk": "gradio",
            },
        )

    @route("GET", rf"/api/{KIND}/{NAME}/refs")
    def refs(self, kind: str, name: str) -> None:
        repo = self.find(kind, name)

        def listed(names: dict[str, str], prefix: str) -> list[dict[str, str]]:
            return [{"name": n, "ref": f"{prefix}{n}", "targetCommit": sha} for n, sha in names.items()]

        branches = {n: sha for n, sha in repo.branches.items() if not n.startswith("refs/pr/")}
        pulls = {n: sha for n, sha in repo.branches.items() if n.startswith("refs/pr/")}
        answer = {"branches": listed(branches, "refs/heads/"), "tags": listed(repo.tags, "refs/tags/"), "converts": []}
        self.reply(200, {**answer, "pullRequests": listed(pulls, "")})

    @route("POST|DELETE", rf"/api/{KIND}/{NAME}/(?P<what>tag|branch)/(?P<revision>[^/]+)")
    def mark(self, kind: str, name: str, what: str, revision: str) -> None:
        repo, revision = self.find(kind, name, write=True), unquote(revision)
        names = repo.tags if what == "tag" else repo.branches
        asked = json.loads(self.body or b"{}")
        if self.command == "DELETE":
            names.pop(revision, None)
        else:
            new = asked["tag"] if what == "tag" else revision
            start = revision if what == "tag" else asked.get("startingPoint") or "main"
            if new in names:
                raise HubRefusal(409, "", f"{what} {new} exists already")
            names[new] = repo.resolve(start)
        self.reply(200, {})

    @route("GET", rf"/api/{KIND}/{NAME}/commits/(?P<revision>[^/]+)")
    def log(self, kind: str, name: str, revision: str) -> None:
        repo, listed = self.find(kind, name), []
        sha: str | None = repo.resolve(unquote(revision))
        while sha:
            commit = repo.commits[sha]
            listed.append({"id": sha, "title": commit.title, "message": "", "date": DATE, "authors": []})
            sha = commit.parent
        self.reply(200, listed)

    @route("POST", rf"/api/spaces/{NAME}/variables")
    def variable(self, name: str) -> None:
        asked = json.loads(self.body)
        repo = self.find("spaces", name, write=True)
        repo.variables[asked["key"]] = asked["value"]
        self.reply(200, {k: {"key": k, "value": v, "updatedAt": DATE} for k, v in repo.variables.items()})

    # ---- writing ---------------------------------------------------------------------------------------------------

    @route("POST", rf"/api/{KIND}/{NAME}/preupload/(?P<revision>[^/]+)")
    def preupload(self, kind: str, name: str, revision: str) -> None:
        repo = self.find(kind, name, write="create_pr" not in self.query)
        there, answer = repo.blobs(unquote(revision)), []
        for file in json.loads(self.body)["files"]:
            large = file["path"].endswith(LFS_SUFFIXES) or file["size"] > LFS_SIZE
            old = there.get(file["path"])
            oid = old and (old.sha256 if old.lfs else old.oid)
            mode = "lfs" if large else "regular"
            answer.append({"path": file["path"], "shouldIgnore": False, "uploadMode": mode, "oid": oid})
        self.reply(200, {"files": answer})

    @route("POST", rf"/(?:{KIND}/)?{NAME}\.git/info/lfs/objects/batch")
    def lfs_batch(self, kind: str | None, name: str) -> None:
        self.find(kind, name)
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            item = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.large:
                item["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{wanted['oid']}", "header": {}}}
            objects.append(item)
        self.reply(200, {"transfer": "basic", "objects": objects}, kind="application/vnd.git-lfs+json")

    @route("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})")
    def lfs_put(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise HubRefusal(422, "", "checksum of the upload does not match")
        self.hub.large[oid] = self.body
        self.reply(200)

    @route("POST", rf"/api/{KIND}/{NAME}/commit/(?P<revision>[^/]+)")
    def commit(self, kind: str, name: str, revision: str) -> None:
        proposed = "create_pr" in self.query
        repo, branch = self.find(kind, name, write=not proposed), unquote(revision)
        if self.user is None:
            raise HubRefusal(401, "", "Invalid username or password.")
        add: dict[str, Blob] = {}
        delete: list[str] = []
        title, parent = "", None
        for line in self.body.splitlines():
            item = json.loads(line)
            what, value = item["key"], item["value"]
            if what == "header":
                title, parent = value.get("summary", ""), value.get("parentCommit")
            elif what == "file":
                add[value["path"]] = Blob(base64.b64decode(value["content"]), False)
            elif what == "lfsFile":
                if value["oid"] not in self.hub.large:
                    raise HubRefusal(400, "", f"LFS object {value['oid']} was not uploaded")
                add[value["path"]] = Blob(self.hub.large[value["oid"]], True)
            else:
                delete.append(value["path"])
        head = repo.resolve(branch)
        if parent is not None and not head.startswith(parent) and not proposed:
            raise HubRefusal(412, "", "A commit has happened since. Please refresh and try again.")
        answer = {"success": True, "hookOutput": ""}
        if proposed:
            number = 1 + sum(n.startswith("refs/pr/") for n in repo.branches)
            branch = f"refs/pr/{number}"
            repo.branches[branch] = head
            answer["pullRequestUrl"] = f"{self.hub.url}/{repo.name}/discussions/{number}"
        sha = repo.commit(branch, add, delete, title)
        self.reply(200, {**answer, "commitOid": sha, "commitUrl": f"{self.hub.url}/{repo.name}/commit/{sha}"})

    @route("POST", rf"/api/{KIND}/{NAME}/discussions/(?P<number>\d+)/merge")
    def merge(self, kind: str, name: str, number: str) -> None:
        repo = self.find(kind, name, write=True)
        repo.branches["main"] = repo.resolve(f"refs/pr/{number}")
        self.reply(200, {})

    # ---- reading ---------------------------------------------------------------------------------------------------

    @route("GET", rf"/api/{KIND}/{NAME}/tree/(?P<revision>[^/]+)(?:/(?P<under>.*))?")
    def tree(self, kind: str, name: str, revision: str, under: str | None) -> None:
        blobs = self.find(kind, name).blobs(unquote(revision))
        prefix = unquote(under).strip("/") + "/" if under else ""
        everything = self.query.get("recursive", "").lower() in ("1", "true")
        folders, files = set(), []
        for path, blob in sorted(blobs.items()):
            if not path.startswith(prefix):
                continue
            parts = path[len(prefix) :].split("/")
            depth = len(parts) - 1 if everything else min(len(parts) - 1, 1)
            folders |= {prefix + "/".join(parts[: i + 1]) for i in range(depth)}
            if everything or len(parts) == 1:
                files.append(blob.entry(path))
        if prefix and not files and not folders:
            raise HubRefusal(404, "EntryNotFound", f"{under} does not exist")
        self.reply(200, [self.folder(path) for path in sorted(folders)] + files)

    @staticmethod
    def folder(path: str) -> dict[str, Any]:
        return {"type": "directory", "path": path, "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0}

    @route("POST", rf"/api/{KIND}/{NAME}/paths-info/(?P<revision>[^/]+)")
    def paths_info(self, kind: str, name: str, revision: str) -> None:
        blobs = self.find(kind, name).blobs(unquote(revision))
        try:
            paths = json.loads(self.body)["paths"]
        except ValueError:
            paths = parse_qs(self.body.decode()).get("paths", [])
        found = []
        for path in [paths] if isinstance(paths, str) else paths:
            if path in blobs:
                found.append(blobs[path].entry(path))
            elif any(other.startswith(path.rstrip("/") + "/") for other in blobs):
                found.append(self.folder(path))
        self.reply(200, found)

    @route("GET|HEAD", rf"/(?:{KIND}/)?{NAME}/(?:resolve|raw)/(?P<revision>[^/]+)/(?P<path>.+)")
    def resolve(self, kind: str | None, name: str, revision: str, path: str) -> None:
        repo = self.find(kind, name)
        sha = repo.resolve(unquote(revision))
        blob = repo.commits[sha].files.get(unquote(path))
        if blob is None:
            headers = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha}
            self.reply(404, {"error": "Entry not found"}, headers)
            return
        etag = blob.sha256 if blob.lfs else blob.oid
        headers = {
            "ETag": f'"{etag}"',
            "X-Repo-Commit": sha,
            "Accept-Ranges": "bytes",
        }
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted is None:
            self.reply(200, blob.data, headers, "application/octet-stream")
            return
        start = int(wanted[1])
        end = min(int(wanted[2] or len(blob.data)), len(blob.data) - 1)
        if start > end:
            raise HubRefusal(416, "", "Range not satisfiable")
        headers["Content-Range"] = f"bytes {start}-{end}/{len(blob.data)}"
        self.reply(206, blob.data[start : end + 1], headers, "application/octet-stream")

    # ---- collections -----------------------------------------------------------------------------------------------

    @route("POST", r"/api/collections")
    def create_collection(self) -> None:
        asked = json.loads(self.body)
        if self.user is None or not self.user.writes or self.user.name != asked["namespace"]:
            raise HubRefusal(403 if self.user else 401, "", "You have no rights to write here.")
        slug = f"{asked['namespace']}/{asked['title'].lower().replace(' ', '-')}-0123456789abcdef01234567"
        known = slug in self.hub.collections
        if not known:
            self.hub.collections[slug] = {
                "slug": slug,
                "title": asked["title"],
                "owner": {"name": asked["namespace"], "type": "user"},
                "items": [],
                "lastUpdated": DATE,
                "position": 0,
                "private": bool(asked.get("private")),
                "theme": "blue",
                "upvotes": 0,
                "description": asked.get("description"),
            }
        self.reply(409 if known else 200, self.hub.collections[slug])

    @route("GET", r"/api/collections/(?P<slug>[^/]+/[^/]+)")
    def collection(self, slug: str) -> None:
        if slug not in self.hub.collections:
            raise HubRefusal(404, "", "Collection not found")
        self.reply(200, self.hub.collections[slug])

    @route("POST", r"/api/collections/(?P<slug>[^/]+/[^/]+)/items?")
    def add_item(self, slug: str) -> None:
        asked, items = json.loads(self.body), self.hub.collections[slug]["items"]
        item = asked["item"]
        if any(old["id"] == item["id"] and old["type"] == item["type"] for old in items):
            raise HubRefusal(409, "", "Item already in the collection")
        note = {"text": asked["note"], "html": asked["note"]} if asked.get("note") else None
        items.append({"_id": f"{len(items):024x}", "position": len(items), "note": note, **item})
        self.reply(200, self.hub.collections[slug])


def summary(hub: LocalHub) -> collections.Counter:
    """How often each kind of request was made; for finding out what a client asks."""
    return collections.Counter(re.sub(r"[0-9a-f]{40,}", "…", f"{m} {p} {s}") for m, p, s in hub.requests)


if __name__ == "__main__":
    with LocalHub() as running:
        print(f"HF_ENDPOINT={running.url} HF_TOKEN={WRITER} HF_HUB_DISABLE_XET=1", flush=True)
        sys.stdin.read()  # until end of input
        print(*summary(running).items(), sep="\n")
