"""The part of the Hugging Face hub's HTTP API through which models are uploaded.

A real HTTP server on this machine, for the hub's own client: who am I, create a repository or a
branch, ask how files are sent, Git LFS (batch, upload, verify), and commits. What was committed is
kept in memory, by repository and branch.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN, READ_TOKEN = "hf_may_write", "hf_may_read"
USER = "ann"


@dataclass
class Repository:
    """A repository: whether it is private, and branch -> path -> content."""

    private: bool
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    messages: list[str] = field(default_factory=list)
    pull_requests: list[dict[str, bytes]] = field(default_factory=list)


@dataclass
class Hub:
    """What the server knows, and which requests it saw (method and path, without the query)."""

    address: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    broken_uploads: int = 0
    """How many of the next uploads of large files fail with status 500."""


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """Run a hub until the block ends."""
    hub = Hub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        path = self._begin()
        if path == "/api/whoami-v2":
            if self._token in (TOKEN, READ_TOKEN):
                return self._answer(200, {"name": USER, "type": "user", "orgs": []})
            return self._answer(401, {"error": "Invalid user token."})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            repository = self.hub.repositories.get(found[1])
            if repository is None or (repository.private and self._token is None):
                return self._missing()
            info = {"id": found[1], "private": repository.private, "sha": "0" * 40, "siblings": []}
            return self._answer(200, info)
        return self._missing()

    def do_POST(self) -> None:
        path = self._begin()
        if path == "/api/validate-yaml":
            return self._validate(json.loads(self._body)["content"])
        if self._token != TOKEN:
            status = 401 if self._token is None else 403
            return self._answer(status, {"error": "You don't have the rights to do that."})
        return self._write(path)

    def _write(self, path: str) -> None:
        """Do what only a token that may write is allowed to."""
        if path == "/api/repos/create":
            return self._create(json.loads(self._body))
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._batch(json.loads(self._body))
        if path == "/verify":
            wanted = json.loads(self._body)
            content = self.hub.objects.get(wanted["oid"], b"")
            return self._answer(200 if len(content) == wanted["size"] else 404, {})
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit|branch)/(.+)", path)
        repository = None if found is None else self.hub.repositories.get(found[1])
        if found is None or repository is None:
            return self._missing()
        handle = {"preupload": self._modes, "commit": self._commit, "branch": self._branch}
        return handle[found[2]](repository, found[1], unquote(found[3]))

    def do_PUT(self) -> None:
        path = self._begin()
        if self.hub.broken_uploads > 0:
            self.hub.broken_uploads -= 1
            return self._answer(500, {"error": "storage is out of order"})
        oid = path.removeprefix("/objects/")
        if hashlib.sha256(self._body).hexdigest() != oid:
            return self._answer(400, {"error": "content does not match its digest"})
        self.hub.objects[oid] = self._body
        return self._answer(200, {})

    def _begin(self) -> str:
        size = self.headers.get("Content-Length")
        if size is not None:
            self._body = self.rfile.read(int(size))
        else:
            self._body = self._chunks() if self.headers.get("Transfer-Encoding") else b""
        token = self.headers.get("Authorization")
        self._token = None if token is None else token.removeprefix("Bearer ")
        parts = urlsplit(self.path)
        self._query = parse_qs(parts.query)
        self.hub.requests.append((self.command, parts.path))
        return parts.path

    def _chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, status: int, content: object, **headers: str) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def _missing(self) -> None:
        self._answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")

    def _validate(self, content: str) -> None:
        try:
            metadata = yaml.safe_load(content.split("---\n")[1])
            errors = [] if isinstance(metadata, dict) else [{"message": "no metadata"}]
        except (IndexError, yaml.YAMLError) as error:
            errors = [{"message": str(error)}]
        else:
            # As the hub does: a parent is a repository of it.
            named = metadata.get("base_model") or [] if isinstance(metadata, dict) else []
            errors += [
                {"message": f'"base_model" with value "{name}" is not valid'}
                for name in ([named] if isinstance(named, str) else named)
                if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name)
            ]
        self._answer(400 if errors else 200, {"errors": errors, "warnings": []})

    def _create(self, wanted: dict[str, object]) -> None:
        name = f"{wanted['organization'] or USER}/{wanted['name']}"
        url = f"{self.hub.address}/{name}"
        if name in self.hub.repositories:
            return self._answer(409, {"error": "You already created this model repo", "url": url})
        self.hub.repositories[name] = Repository(private=wanted.get("visibility") == "private")
        return self._answer(200, {"url": url, "name": name})

    def _branch(self, repository: Repository, _: str, branch: str) -> None:
        if branch in repository.branches:
            return self._answer(409, {"error": "branch exists"})
        repository.branches[branch] = dict(repository.branches["main"])
        return self._answer(200, {})

    def _modes(self, _: Repository, __: str, ___: str) -> None:
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for file in json.loads(self._body)["files"]
        ]
        self._answer(200, {"files": files})

    def _batch(self, wanted: dict[str, list[dict[str, object]]]) -> None:
        objects = []
        for item in wanted["objects"]:
            entry = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.hub.objects:
                entry["actions"] = {
                    "upload": {"href": f"{self.hub.address}/objects/{item['oid']}"},
                    "verify": {"href": f"{self.hub.address}/verify"},
                }
            objects.append(entry)
        self._answer(200, {"transfer": "basic", "objects": objects})

    def _commit(self, repository: Repository, name: str, branch: str) -> None:
        if branch not in repository.branches:
            return self._answer(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
        files = dict(repository.branches[branch])
        for line in self._body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "header":
                repository.messages.append(value["summary"])
            elif operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
        url = f"{self.hub.address}/{name}"
        answer = {"commitUrl": f"{url}/commit/{'1' * 40}", "commitOid": "1" * 40}
        if self._query.get("create_pr") == ["1"]:
            repository.pull_requests.append(files)
            answer["pullRequestUrl"] = f"{url}/discussions/{len(repository.pull_requests)}"
        else:
            repository.branches[branch] = files
        return self._answer(200, answer)
