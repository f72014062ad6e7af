"""A Hub on this machine: the HTTP requests with which huggingface_hub creates and fills a model."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

TOKEN = "hf_" + "a" * 34


@dataclass
class FakeHub:
    """The contents of a Hub, and its failures.

    Attributes:
        url: Its address.
        repositories: Whether each model is private.
        commits: The files of each commit: contents, or the sha256 of a large file.
        uploaded: Large files by their sha256.
        failures: Statuses to answer with, by a part of the path; 0 closes the connection.
    """

    url: str = ""
    repositories: dict[str, bool] = field(default_factory=dict)
    commits: list[dict[str, bytes | str]] = field(default_factory=list)
    uploaded: dict[str, bytes] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)

    def answer(self, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        """Return the status and JSON of a POST request."""
        if path == "/api/repos/create":
            given = json.loads(body)
            name = f"{given['organization']}/{given['name']}"
            if name in self.repositories:
                exists = {"error": "You already created this model repo"}
                return 409, exists | {"url": f"{self.url}/{name}"}
            private = given.get("private") or given.get("visibility") == "private"
            self.repositories[name] = private
            return 200, {"url": f"{self.url}/{name}", "name": name, "id": "1"}
        if path == "/api/validate-yaml":  # a model card's metadata
            return 200, {"errors": [], "warnings": []}
        if "/preupload/" in path:
            large = re.compile(r"\.(safetensors|onnx)$")
            files = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if large.search(one["path"]) else "regular",
                    "shouldIgnore": False,
                }
                for one in json.loads(body)["files"]
            ]
            return 200, {"files": files}
        if path.endswith("/objects/batch"):
            objects = [
                one | {"actions": {"upload": {"href": f"{self.url}/upload/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            return 200, {"transfer": "basic", "objects": objects}
        if "/commit/" in path:
            commit: dict[str, bytes | str] = {}
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    commit[value["path"]] = value["content"]
                elif line["key"] == "lfsFile":
                    commit[value["path"]] = value["oid"]
            self.commits.append(commit)
            name = path.split("/api/models/")[1].split("/commit/")[0]
            return 200, {"commitUrl": f"{self.url}/{name}/commit/abc", "commitOid": "abc"}
        return 404, {"error": f"unknown: {path}"}


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """Serve a Hub on 127.0.0.1 within the context."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def failed(self) -> bool:
            for part, status in hub.failures.items():
                if part in self.path:
                    if status:
                        self.reply(status, {"error": "refused by the test"})
                    else:
                        self.close_connection = True
                        self.connection.close()
                    return True
            if self.path.startswith("/api/") and TOKEN not in self.headers.get("authorization", ""):
                self.reply(401, {"error": "Invalid username or password."})
                return True
            return False

        def reply(self, status: int, content: dict[str, Any]) -> None:
            text = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if not self.failed():
                self.reply(*hub.answer(self.path, body))

        def do_PUT(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if not self.failed():
                hub.uploaded[self.path.rsplit("/", 1)[1]] = body
                self.reply(200, {})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
