"""A stand-in of the model hub on the loopback: repositories in memory, its HTTP API over them.

What huggingface_hub asks of a hub is answered as the real one documents it: facts and trees of a
revision, files (whole or from an offset), and the way of an upload (create, preupload, LFS batch,
commit). Weights travel as LFS files, the rest as ordinary ones. Use the fixture:

    from tests.models.hub_stand_in import HubStandIn, hub

    def test_x(hub: HubStandIn) -> None:
        commit = hub.add("owner/name", {"model_index.json": b"{}"})
        hub.repositories["owner/name"].refs["v1"] = commit

In this process the client then speaks to the stand-in, with an empty cache and a token. For another
process, `environment()` says the same in variables.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

TOKEN = "hf_stand_in"
LFS = (".safetensors", ".gguf", ".bin")
Files = dict[str, bytes]

_INFO = re.compile(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?")
_TREE = re.compile(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)(?:/.*)?")
_FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_PREUPLOAD = re.compile(r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)")
_COMMIT = re.compile(r"/api/models/([^/]+/[^/]+)/commit/([^/]+)")
_BRANCH = re.compile(r"/api/models/([^/]+/[^/]+)/branch/([^/]+)")
_BATCH = re.compile(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch")


@dataclass
class Repository:
    """Commits and the names that point at them.

    Attributes:
        commits: the files of each commit, by its id.
        refs: branches and tags; "main" is there from the first commit on.
        gated: its files need terms to be accepted that nobody here has accepted.
        private: what `create_repo` asked for.
    """

    commits: dict[str, Files] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    private: bool = False

    def commit(self, files: Files, ref: str = "main") -> str:
        """Makes a commit of exactly these files, moves `ref` to it and returns its id."""
        digest = hashlib.sha1(str(len(self.commits)).encode())
        for path in sorted(files):
            digest.update(path.encode() + files[path])
        self.commits[digest.hexdigest()] = files
        self.refs[ref] = digest.hexdigest()
        return digest.hexdigest()

    @property
    def files(self) -> Files:
        """The files of "main"."""
        return self.commits[self.refs["main"]] if "main" in self.refs else {}


class HubStandIn:
    """The hub and what was asked of it.

    Attributes:
        url: of the server; `repositories`: by "owner/name".
        objects: uploaded LFS objects by SHA-256.
        requests: method and path of each request, in order.
        sent: bytes of files that went out.
        break_after: the next file breaks off after so many bytes, once.
        slow: the content of a file comes in pieces of so many bytes, one each 50 ms.
        broken: every request is answered with 500.
        read_only: the token may not write.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.sent = 0
        self.break_after: int | None = None
        self.slow: int | None = None
        self.broken = False
        self.read_only = False
        hub = self

        class Handler(_Handler):
            def __init__(self, *args: Any) -> None:
                self.hub = hub
                super().__init__(*args)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=lambda: self._server.serve_forever(0.02), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def add(self, name: str, content: Mapping[str, bytes] | Path) -> str:
        """Commits files, or those of a folder, to "main" of a repository; returns the commit."""
        if isinstance(content, Path):
            found = (item for item in content.rglob("*") if item.is_file())
            files = {str(item.relative_to(content)): item.read_bytes() for item in found}
        else:
            files = dict(content)
        return self.repositories.setdefault(name, Repository()).commit(files)

    def environment(self, cache: Path) -> dict[str, str]:
        """Returns the variables with which another process uses this hub and that cache."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HUB_CACHE": str(cache),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": TOKEN,
        }

    def fetched(self) -> list[str]:
        """Returns the paths of the files whose content was asked for, in order."""
        found = (_FILE.fullmatch(path) for method, path in self.requests if method == "GET")
        return [match.group(3) for match in found if match is not None]

    def close(self) -> None:
        """Stops the server."""
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[HubStandIn, None, None]:
    """A stand-in that this process's client speaks to, with an empty cache."""
    from huggingface_hub import constants, hf_api

    server = HubStandIn()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(hf_api.api, "endpoint", server.url)
    yield server
    server.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubStandIn

    def log_message(self, format: str, *args: object) -> None:
        del format, args

    def do_HEAD(self) -> None:
        self._answer("HEAD")

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def _answer(self, method: str) -> None:
        path = urlsplit(self.path).path
        self.hub.requests.append((method, unquote(path)))
        body = self._body()
        if self.hub.broken:
            return self._fail(500, "Broken", "this hub is broken")
        if method in ("HEAD", "GET"):
            return self._read(path)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}" and method != "PUT":
            return self._fail(401, "", "Invalid credentials in Authorization header")
        if self.hub.read_only and method != "PUT":
            return self._fail(403, "", "this token may not write")
        return self._write(path, body)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts: list[bytes] = []
        while length := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(length))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _read(self, path: str) -> None:
        if path == "/api/whoami-v2":
            return self._json({"type": "user", "name": "tester", "orgs": []})
        for pattern, answer in ((_TREE, self._tree), (_INFO, self._info), (_FILE, self._file)):
            if (match := pattern.fullmatch(path)) is not None:
                name, revision = match.group(1), unquote(match.group(2) or "main")
                repository = self.hub.repositories.get(name)
                if repository is None:
                    return self._fail(404, "RepoNotFound", "Repository not found")
                commit = repository.refs.get(revision, revision)
                if commit not in repository.commits:
                    return self._fail(404, "RevisionNotFound", "Invalid rev id")
                rest = unquote(match.group(3)) if pattern is _FILE else ""
                return answer(name, repository, commit, rest)
        return self._fail(404, "", "no such page")

    def _info(self, name: str, repository: Repository, commit: str, _: str) -> None:
        names = [{"rfilename": path} for path in sorted(repository.commits[commit])]
        facts = {"id": name, "modelId": name, "sha": commit, "siblings": names, "tags": []}
        self._json(facts | {"private": repository.private, "gated": repository.gated})

    def _tree(self, _: str, repository: Repository, commit: str, __: str) -> None:
        entries: list[dict[str, Any]] = []
        for path, data in sorted(repository.commits[commit].items()):
            entry = {"type": "file", "path": path, "size": len(data), "oid": _git_oid(data)}
            if path.endswith(LFS):
                entry["lfs"] = {"oid": _oid(path, data), "size": len(data), "pointerSize": 134}
            entries.append(entry)
        self._json(entries)

    def _file(self, _: str, repository: Repository, commit: str, path: str) -> None:
        if repository.gated:
            return self._fail(403, "GatedRepo", "Access to this model is restricted")
        data = repository.commits[commit].get(path)
        if data is None:
            return self._fail(404, "EntryNotFound", "Entry not found")
        headers = {"ETag": f'"{_oid(path, data)}"', "X-Repo-Commit": commit}
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(asked.group(1)) if asked else 0
        if asked:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        return self._send(206 if asked else 200, data[start:], headers, content=True)

    def _write(self, path: str, body: bytes) -> None:
        if path.startswith("/lfs/"):
            oid = path.removeprefix("/lfs/")
            if hashlib.sha256(body).hexdigest() != oid:
                return self._fail(400, "", "the content does not fit its SHA-256")
            self.hub.objects[oid] = body
            return self._send(200, b"", {})
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if _BATCH.fullmatch(path):
            return self._json({"transfer": "basic", "objects": self._batch(json.loads(body))})
        if (match := _PREUPLOAD.fullmatch(path)) is not None:
            return self._preupload(match.group(1), json.loads(body))
        if (match := _BRANCH.fullmatch(path)) is not None and match.group(
            1
        ) in self.hub.repositories:
            refs = self.hub.repositories[match.group(1)].refs
            refs.setdefault(unquote(match.group(2)), refs["main"])
            return self._json({})
        if (match := _COMMIT.fullmatch(path)) is not None:
            return self._commit(match.group(1), unquote(match.group(2)), body)
        return self._fail(404, "", "no such page")

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked.get('organization') or 'tester'}/{asked['name']}"
        if name in self.hub.repositories:
            return self._json({"url": f"{self.hub.url}/{name}", "error": "exists"}, status=409)
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.repositories[name] = Repository(private=private)
        self.hub.repositories[name].commit({".gitattributes": b""})  # as the real one begins
        return self._json({"url": f"{self.hub.url}/{name}", "name": name})

    def _batch(self, asked: dict[str, Any]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for item in asked["objects"]:
            known = item["oid"] in self.hub.objects
            actions = {"upload": {"href": f"{self.hub.url}/lfs/{item['oid']}"}}
            found.append(item if known else item | {"actions": actions})
        return found

    def _preupload(self, name: str, asked: dict[str, Any]) -> None:
        if name not in self.hub.repositories:
            return self._fail(404, "RepoNotFound", "Repository not found")
        there = self.hub.repositories[name].files
        modes = [
            {
                "path": item["path"],
                "uploadMode": "lfs" if item["path"].endswith(LFS) else "regular",
                "shouldIgnore": False,
                "oid": _oid(item["path"], there[item["path"]]) if item["path"] in there else None,
            }
            for item in asked["files"]
        ]
        return self._json({"files": modes})

    def _commit(self, name: str, ref: str, body: bytes) -> None:
        if name not in self.hub.repositories:
            return self._fail(404, "RepoNotFound", "Repository not found")
        repository = self.hub.repositories[name]
        files = dict(repository.commits.get(repository.refs.get(ref, ""), {}))
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    return self._fail(400, "", f"{value['path']} was not uploaded")
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif entry["key"] == "deletedFile":
                files.pop(value["path"], None)
        commit = repository.commit(files, ref)
        return self._json({"commitUrl": f"{self.hub.url}/{name}/commit/{commit}",
                           "commitOid": commit, "success": True})  # fmt: skip

    def _json(self, values: object, *, status: int = 200) -> None:
        self._send(status, json.dumps(values).encode(), {"Content-Type": "application/json"})

    def _fail(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self._send(status, b"{}", headers | {"Content-Type": "application/json"})

    def _send(
        self, status: int, data: bytes, headers: Mapping[str, str], *, content: bool = False
    ) -> None:
        self.send_response(status)
        for key, value in (*headers.items(), ("Content-Length", str(len(data)))):
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if content:
            limit, self.hub.break_after = self.hub.break_after, None
            self.close_connection = limit is not None
            data = data[:limit]
            self.hub.sent += len(data)
            if self.hub.slow is not None:
                self._slowly(data, self.hub.slow)
                return
        self.wfile.write(data)

    def _slowly(self, data: bytes, piece: int) -> None:
        try:
            for start in range(0, len(data), piece):
                self.wfile.write(data[start : start + piece])
                time.sleep(0.05)
        except OSError:  # who asked has hung up
            self.close_connection = True


def _git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _oid(path: str, data: bytes) -> str:
    return hashlib.sha256(data).hexdigest() if path.endswith(LFS) else _git_oid(data)
