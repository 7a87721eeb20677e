"""A model hub on this machine: as much of it as a client asks for when it makes a repository and sends files to it."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, dict[str, Any]]


@dataclass
class Asked:
    """A request."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def lines(self) -> list[Any]:
        """Of newline-delimited JSON."""
        return [json.loads(line) for line in self.body.splitlines()]


@dataclass
class Hub:
    """What it holds, and everything that it was asked."""

    url: str = ""
    token: str = "hf_right"
    lfs_from: int = 1 << 30
    """Bytes from which a file is to go to the large store."""
    repositories: dict[str, dict[str, Any]] = field(default_factory=dict)
    """`owner/name` -> `private`, and `files` by name."""
    large: dict[str, bytes] = field(default_factory=dict)
    """Digest -> content."""
    asked: list[Asked] = field(default_factory=list)
    refuse: dict[str, Answer] = field(default_factory=dict)
    """A part of a path -> what is answered there instead."""

    @property
    def paths(self) -> list[str]:
        return [f"{asked.method} {asked.path}" for asked in self.asked]

    def one(self, part: str) -> Asked:
        """The only request with this in its path."""
        (found,) = (asked for asked in self.asked if part in asked.path)
        return found

    def answer(self, asked: Asked) -> Answer:
        """What a hub says."""
        for part, answer in self.refuse.items():
            if part in asked.path:
                return answer
        if "/large/" not in asked.path and asked.headers.get("authorization") != f"Bearer {self.token}":
            return 401, {"error": "Invalid username or password."}
        path = asked.path.partition("?")[0]
        if path == "/api/repos/create":
            return self._create(asked.json)
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path.startswith("/large/"):
            self.large[path.rpartition("/")[2]] = asked.body
            return 200, {}
        if path == "/verify":
            size = len(self.large.get(asked.json["oid"], b""))
            return (200, {}) if size == asked.json["size"] else (400, {"error": "another size"})
        if path.endswith("/info/lfs/objects/batch"):
            return 200, {"transfer": "basic", "objects": [self._place(one) for one in asked.json["objects"]]}
        name, _, what = path.removeprefix("/api/models/").partition("/preupload/")
        if what:
            files = [self._mode(one) for one in asked.json["files"]]
            return 200, {"files": files}
        name, _, what = path.removeprefix("/api/models/").partition("/commit/")
        if what:
            return self._commit(name, asked.lines)
        if name in self.repositories:
            held = self.repositories[name]
            siblings = [{"rfilename": file} for file in held["files"]]
            return 200, {"id": name, "modelId": name, "private": held["private"], "siblings": siblings, "sha": "0" * 40}
        return 404, {"error": "Repository not found"}

    def _create(self, given: dict[str, Any]) -> Answer:
        name = f"{given['organization']}/{given['name']}"
        body = {"url": f"{self.url}/{name}"}
        if name in self.repositories:
            return 409, {"error": "You already created this model repo", **body}
        self.repositories[name] = {"private": given.get("visibility") == "private", "files": {}}
        return 200, body

    def _mode(self, one: dict[str, Any]) -> dict[str, Any]:
        base64.b64decode(one["sample"])
        mode = "lfs" if one["size"] >= self.lfs_from else "regular"
        return {"path": one["path"], "uploadMode": mode, "shouldIgnore": False}

    def _place(self, one: dict[str, Any]) -> dict[str, Any]:
        if one["oid"] in self.large:
            return one
        actions = {"upload": {"href": f"{self.url}/large/{one['oid']}"}, "verify": {"href": f"{self.url}/verify"}}
        return {**one, "actions": actions}

    def _commit(self, name: str, lines: list[Any]) -> Answer:
        files = self.repositories[name]["files"]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                content = self.large[value["oid"]]
                assert hashlib.sha256(content).hexdigest() == value["oid"]
                files[value["path"]] = content
            else:
                assert line["key"] == "header", line
        return 200, {"commitUrl": f"{self.url}/{name}/commit/{'1' * 40}", "commitOid": "1" * 40}


@contextmanager
def served() -> Iterator[Hub]:
    """A hub that answers while the block runs."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def _handle(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            headers = {name.lower(): value for name, value in self.headers.items()}
            if headers.get("transfer-encoding") == "chunked":
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                body = self.rfile.read(length)
            asked = Asked(self.command, self.path, headers, body)
            hub.asked.append(asked)
            status, answer = hub.answer(asked)
            text = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *anything: Any) -> None:
            """Say nothing."""

    for method in ("GET", "POST", "PUT"):
        setattr(Handler, f"do_{method}", Handler._handle)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
