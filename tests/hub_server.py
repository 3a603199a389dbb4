"""A stand-in for the Hugging Face hub: its HTTP interface on loopback, as far as vectors need it,
and its failures.

Repositories live in memory: commits of whole trees, branches and tags that name commits. Large
files take the way of Git LFS, over a storage host's addresses, as on the hub; Xet is not offered.
What goes wrong is set in `Hub.fault`.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

MOST = 1 << 24  # bytes that a request may have
WAIT = 10  # seconds after which a silent connection is closed
TOKENS = {"hf_anna": "anna", "hf_ben": "ben"}  # whose repositories a token may write


@dataclass
class Repo:
    """Commits by id, each a tree of files; refs (branches and tags) that name them."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"0" * 40: {}})
    refs: dict[str, str] = field(default_factory=lambda: {"main": "0" * 40})
    messages: list[str] = field(default_factory=list)

    def commit(self, ref: str, files: dict[str, bytes], message: str) -> str:
        content = repr((self.refs[ref], message, sorted(files.items())))
        self.refs[ref] = oid = hashlib.sha1(content.encode()).hexdigest()
        self.commits[oid] = files
        self.messages.append(message)
        return oid


@dataclass
class Fault:
    """What goes wrong with the content of files.

    cut      a connection is closed after so many bytes of a file; None: never
    times    how many of them
    corrupt  a bit of every file that ends so is flipped
    status   answer everything with this
    forbid   nobody may do what begins with this path
    """

    cut: int | None = None
    times: int = 1
    corrupt: str | None = None
    status: int | None = None
    forbid: str | None = None


@dataclass
class Hub:
    """The state of the stand-in, and what it was asked."""

    tokens: dict[str, str]
    url: str = ""
    storage: str = ""  # another origin, as where the hub keeps large files
    repos: dict[str, Repo] = field(default_factory=dict)
    collections: dict[str, dict[str, Any]] = field(default_factory=dict)  # by their slug
    lfs: dict[str, bytes] = field(default_factory=dict)
    fault: Fault = field(default_factory=Fault)
    asked: list[str] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)

    def fetched(self) -> list[str]:
        """The files that were downloaded."""
        return sorted(
            path.rsplit("/", 1)[1]
            for path in self.asked
            if re.match("GET /(storage|.*/resolve)/", path)
        )


class Refused(Exception):
    """An answer that is an error: status, X-Error-Code, message."""


def large(path: str) -> bool:
    return path.endswith((".safetensors", ".parquet"))


def described(path: str, data: bytes) -> dict[str, Any]:
    """A file as the hub lists it."""
    row: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": git_oid(data)}
    if large(path):
        sha256 = hashlib.sha256(data).hexdigest()
        row["lfs"] = {"oid": sha256, "size": len(data), "pointerSize": 9}
    return row


def parents(path: str) -> list[str]:
    """The folders that a file is in."""
    parts = path.split("/")[:-1]
    return ["/".join(parts[: number + 1]) for number in range(len(parts))]


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Finds the route of a request, and has the errors that the hub's client knows."""

    protocol_version = "HTTP/1.1"
    timeout = WAIT
    hub: Hub

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def route(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        body = self.rfile.read(min(int(self.headers.get("Content-Length") or 0), MOST))
        try:
            if self.hub.fault.status:
                raise Refused(self.hub.fault.status, "", "out of order")
            if self.hub.fault.forbid and path.startswith(self.hub.fault.forbid):
                raise Refused(403, "", "You don't have the rights")
            for method, pattern, answer in ROUTES:
                found = re.fullmatch(pattern, path)
                if found and self.command in method.split():
                    return answer(self, body, **found.groupdict())
            raise Refused(404, "", f"nothing at {path}")
        except Refused as refused:
            status, code, message = refused.args
            headers = (
                {"X-Error-Code": code, "X-Error-Message": message}
                if code
                else {"X-Error-Message": message}
            )
            self.answer({"error": message}, status, headers)
        except ConnectionError:
            self.close_connection = True
        except Exception as error:  # a bug in the stand-in: the test shall know
            self.hub.failures.append(error)
            raise

    do_GET = do_HEAD = do_POST = do_PUT = route

    def answer(
        self, content: object, status: int = 200, headers: dict[str, str] | None = None
    ) -> None:
        self.send(
            json.dumps(content).encode(),
            status,
            {"Content-Type": "application/json", **(headers or {})},
        )

    def send(self, data: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status, HTTPStatus(status).phrase)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def user(self) -> str:
        """Whose token was sent. Refuses without one, and one that is not known."""
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in self.hub.tokens:
            raise Refused(401, "", "Invalid credentials in Authorization header")
        return self.hub.tokens[token]

    def readable(self, name: str) -> Repo:
        repo, known = self.hub.repos.get(name), "Authorization" in self.headers
        if repo is None or (repo.private and not known):
            raise Refused(404 if known else 401, "RepoNotFound", "Repository not found")
        if repo.private and self.user() != name.split("/")[0]:
            raise Refused(404, "RepoNotFound", "Repository not found")
        if repo.gated and not (known and self.user() == name.split("/")[0]):
            raise Refused(403, "GatedRepo", "Access to this model is restricted")
        return repo

    def writable(self, name: str) -> Repo:
        if self.user() != name.split("/")[0]:
            raise Refused(403, "", f"You don't have the rights to write to {name}")
        return self.readable(name)

    def tree(self, name: str, rev: str) -> tuple[str, dict[str, bytes]]:
        repo = self.readable(name)
        oid = repo.refs.get(rev, rev)
        if oid not in repo.commits:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {rev}")
        return oid, repo.commits[oid]

    def kept_from_strangers(self) -> None:
        """A token is for the hub alone."""
        assert "Authorization" not in self.headers

    # Reading

    def info(self, body: bytes, name: str, rev: str | None = None) -> None:
        oid, files = self.tree(name, rev or "main")
        siblings = [{"rfilename": path} for path in files]
        self.answer(
            {"id": name, "sha": oid, "private": self.hub.repos[name].private, "siblings": siblings}
        )

    def list_tree(self, body: bytes, name: str, rev: str, folder: str | None = None) -> None:
        """The files and folders in a folder, or with `recursive` all below it."""
        _, files = self.tree(name, rev)
        folder = folder or ""
        below = {path: data for path, data in files.items() if path.startswith(folder)}
        if folder and not below:
            raise Refused(404, "EntryNotFound", f"{folder} does not exist on {rev}")
        rows = [described(path, data) for path, data in below.items()]
        folders = {parent for path in below for parent in parents(path) if parent > folder}
        rows += [{"type": "directory", "path": path, "oid": "0" * 40} for path in sorted(folders)]
        if parse_qs(urlsplit(self.path).query).get("recursive", ["true"])[0].lower() == "false":
            rows = [row for row in rows if "/" not in row["path"][len(folder) :].strip("/")]
        self.answer(rows)

    def paths_info(self, body: bytes, name: str, rev: str) -> None:
        """What is at each of some paths, and nothing of those at which there is nothing."""
        _, files = self.tree(name, rev)
        asked = json.loads(body)["paths"]
        rows = [described(path, files[path]) for path in asked if path in files]
        folders = {parent for path in files for parent in parents(path)}
        rows += [
            {"type": "directory", "path": path, "oid": "0" * 40}
            for path in asked
            if path in folders
        ]
        self.answer(rows)

    def resolve(self, body: bytes, name: str, rev: str, path: str) -> None:
        oid, files = self.tree(name, rev)
        if path not in files:
            raise Refused(404, "EntryNotFound", f"{path} does not exist on {rev}")
        data, headers = files[path], {"X-Repo-Commit": oid}
        if not large(path):
            self.content(data, path, {**headers, "ETag": f'"{git_oid(data)}"'})
            return
        sha256 = hashlib.sha256(data).hexdigest()
        self.hub.lfs[sha256] = data
        headers |= {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(data))}
        self.send(b"", 302, {**headers, "Location": f"{self.hub.storage}/storage/{sha256}/{path}"})

    def stored(self, body: bytes, sha256: str, path: str) -> None:
        self.kept_from_strangers()
        self.content(self.hub.lfs[sha256], path, {"ETag": f'"{sha256}"'})

    def content(self, data: bytes, path: str, headers: dict[str, str]) -> None:
        fault = self.hub.fault
        if fault.corrupt and path.endswith(fault.corrupt):
            data = data[:-1] + bytes([data[-1] ^ 1])
        start = int(re.sub(r"bytes=(\d+)-", r"\1", self.headers.get("Range") or "0"))
        ranged = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
        status, rest = (206 if start else 200), data[start:]
        if (
            fault.cut is None
            or fault.times == 0
            or self.command == "HEAD"
            or not path.startswith("vector.safe")
        ):
            self.send(rest, status, {**headers, **ranged})
            return
        fault.times -= 1
        self.send(
            rest[: fault.cut], status, {**headers, **ranged, "Content-Length": str(len(rest))}
        )
        self.close_connection = True

    # Writing

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked['organization'] or self.user()}/{asked['name']}"
        if self.user() != name.split("/")[0]:
            raise Refused(
                403, "", "You don't have the rights to create a model under this namespace"
            )
        if name in self.hub.repos:
            self.answer(
                {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"},
                409,
            )
            return
        private = asked.get("private") or asked.get("visibility") == "private"
        self.hub.repos[name] = Repo(private)
        self.answer({"url": f"{self.hub.url}/{name}", "name": name})

    def branch(self, body: bytes, name: str, branch: str) -> None:
        repo = self.writable(name)
        if branch in repo.refs:
            raise Refused(409, "", "Reference already exists")
        repo.refs[branch] = repo.refs["main"]
        self.answer({})

    def validate(self, body: bytes) -> None:
        """A part of what the hub checks, in its words."""
        _, block, _ = json.loads(body)["content"].split("---\n", 2)
        data, errors = yaml.safe_load(block), []
        for language in data.get("language") or []:
            if not re.fullmatch("[a-z]{2,3}", str(language)):
                errors.append(
                    f'"language" with value "{language}" is not valid. It must be an ISO 639 code'
                )
        if data.get("license") not in (None, "apache-2.0", "mit", "cc-by-sa-4.0", "other"):
            errors.append(
                f'"license" must be one of [apache-2.0, mit, ...], not "{data["license"]}"'
            )
        self.answer(
            {"errors": [{"message": error} for error in errors], "warnings": []},
            400 if errors else 200,
        )

    def preupload(self, body: bytes, name: str, rev: str) -> None:
        """How each file is to be sent, and what is there under its name."""
        there = self.writable(name).commits[self.hub.repos[name].refs[rev]]
        files = []
        for file in json.loads(body)["files"]:
            path = file["path"]
            row = {
                "path": path,
                "uploadMode": "lfs" if large(path) else "regular",
                "shouldIgnore": False,
            }
            if path in there:
                data = there[path]
                row["oid"] = hashlib.sha256(data).hexdigest() if large(path) else git_oid(data)
            files.append(row)
        self.answer({"files": files})

    # Collections

    def create_collection(self, body: bytes) -> None:
        asked = json.loads(body)
        if asked["namespace"] != self.user():
            raise Refused(403, "", "You don't have the rights to create a collection there")
        if not 0 < len(asked["title"]) < 60 or len(asked.get("description", "")) > 150:
            raise Refused(400, "", "title or description is too long")
        slug = f"{asked['namespace']}/{asked['title'].lower().replace(' ', '-')}-0"
        if slug in self.hub.collections:
            self.answer({"error": "Collection already exists", "slug": slug}, 409)
            return
        self.hub.collections[slug] = {
            "slug": slug,
            "title": asked["title"],
            "owner": {"name": asked["namespace"]},
            "items": [],
            "lastUpdated": "2026-01-01T00:00:00.000Z",
            "position": 0,
            "private": asked["private"],
            "theme": "blue",
            "upvotes": 0,
            "description": asked.get("description"),
        }
        self.answer(self.hub.collections[slug])

    def collection(self, body: bytes, slug: str) -> None:
        self.answer(self.hub.collections[slug])

    def add_to_collection(self, body: bytes, slug: str) -> None:
        if self.user() != slug.split("/")[0]:
            raise Refused(403, "", "You don't have the rights to change this collection")
        asked = json.loads(body)
        item, items = asked["item"], self.hub.collections[slug]["items"]
        self.readable(item["id"])
        if item["id"] in [other["id"] for other in items]:
            raise Refused(409, "", "Item already in collection")
        note = {"text": asked["note"]} if "note" in asked else {}
        items.append(
            {
                "_id": f"{len(items):024}",
                **item,
                "position": len(items),
                "note": note,
                "type": "model",
            }
        )
        self.answer(self.hub.collections[slug])

    def batch(self, body: bytes, name: str) -> None:
        self.writable(name)
        objects = [
            {**item, "actions": {"upload": {"href": f"{self.hub.storage}/storage/{item['oid']}"}}}
            for item in json.loads(body)["objects"]
        ]
        self.answer({"transfer": "basic", "objects": objects})

    def store(self, body: bytes, sha256: str) -> None:
        self.kept_from_strangers()
        if hashlib.sha256(body).hexdigest() != sha256:
            raise Refused(400, "", "the content is not that of its checksum")
        self.hub.lfs[sha256] = body
        self.send(b"")

    def commit(self, body: bytes, name: str, rev: str) -> None:
        repo = self.writable(name)
        files = dict(repo.commits[repo.refs[rev]])
        (header, *operations) = [json.loads(line) for line in body.splitlines()]
        for operation in operations:
            value = operation["value"]
            change = {
                "file": lambda value: files.update(
                    {value["path"]: base64.b64decode(value["content"])}
                ),
                "lfsFile": lambda value: files.update({value["path"]: self.hub.lfs[value["oid"]]}),
                "deletedFile": lambda value: files.pop(value["path"]),
            }[operation["key"]]
            change(value)
        oid = repo.commit(rev, files, header["value"]["summary"])
        self.answer(
            {"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{name}/commit/{oid}"}
        )


NAME, REV = r"(?P<name>[\w.-]+/[\w.-]+)", r"(?P<rev>[\w./-]+)"
DATASET = r"(?P<name>datasets/[\w.-]+/[\w.-]+)"
REF = r"(?P<rev>refs/convert/[\w-]+|[\w.-]+)"  # where a path follows
ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate),
    ("POST", "/api/collections", Handler.create_collection),
    ("GET", "/api/collections/(?P<slug>[^/]+/[^/]+)", Handler.collection),
    ("POST", "/api/collections/(?P<slug>[^/]+/[^/]+)/items", Handler.add_to_collection),
    ("GET", f"/api/models/{NAME}", Handler.info),
    ("GET", f"/api/models/{NAME}/revision/{REV}", Handler.info),
    ("GET", f"/api/models/{NAME}/tree/{REF}(?:/(?P<folder>.+))?", Handler.list_tree),
    ("GET", f"/api/{DATASET}", Handler.info),
    ("GET", f"/api/{DATASET}/revision/{REV}", Handler.info),
    ("GET", f"/api/{DATASET}/tree/{REF}(?:/(?P<folder>.+))?", Handler.list_tree),
    ("POST", f"/api/{DATASET}/paths-info/{REV}", Handler.paths_info),
    ("GET HEAD", f"/{DATASET}/resolve/{REF}/(?P<path>.+)", Handler.resolve),
    ("POST", f"/api/models/{NAME}/preupload/{REV}", Handler.preupload),
    ("POST", f"/api/models/{NAME}/commit/{REV}", Handler.commit),
    ("POST", f"/api/models/{NAME}/branch/(?P<branch>.+)", Handler.branch),
    ("POST", f"/{NAME}.git/info/lfs/objects/batch", Handler.batch),
    ("PUT", "/storage/(?P<sha256>[0-9a-f]{64})", Handler.store),
    ("GET HEAD", "/storage/(?P<sha256>[0-9a-f]{64})/(?P<path>.+)", Handler.stored),
    ("GET HEAD", f"/{NAME}/resolve/{REV}/(?P<path>[^/]+)", Handler.resolve),
]


@contextmanager
def serving(tokens: dict[str, str] = TOKENS) -> Iterator[Hub]:
    """A hub on a free port of loopback, within the block."""
    hub = Hub(tokens)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HubHandler", (Handler,), {"hub": hub}))
    hub.url, hub.storage = (
        f"http://{host}:{server.server_port}" for host in ("127.0.0.1", "localhost")
    )
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
    )
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join(WAIT)
    assert hub.failures == []
