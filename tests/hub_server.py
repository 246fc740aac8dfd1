"""A hub on loopback, as much of it as the real huggingface_hub client asks for here.

Repositories are dictionaries of files; a push makes a new commit. Large files (safetensors) go the
way of Git LFS, all others in the commit itself, as on the hub.
"""

import base64
import contextlib
import hashlib
import http.server
import json
import os
import re
import threading
from collections.abc import Generator


class Hub(http.server.ThreadingHTTPServer):
    """The server; `files` and `requests` are for the tests."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, dict[str, bytes]] = {}
        """Repository -> path -> content."""
        self.objects: dict[str, bytes] = {}
        """SHA-256 -> content of large files."""
        self.requests: list[str] = []
        """Method and path of every request."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def commit_of(self, repository: str) -> str:
        """A commit id that follows the content."""
        digest = hashlib.sha1(repository.encode())
        for path, content in sorted(self.files[repository].items()):
            digest.update(path.encode() + content)
        return digest.hexdigest()

    def environment(self, cache: os.PathLike, **more: str) -> dict[str, str]:
        """Of a process whose client talks to this hub."""
        names = {
            "HF_ENDPOINT": self.address,
            "HF_HOME": os.fspath(cache),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_TOKEN": "a-token-of-nobody",
        }
        kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        return kept | names | more


@contextlib.contextmanager
def running() -> Generator[Hub, None, None]:
    """A hub, until the end of the block."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers of the hub."""

    server: Hub  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"

    def log_message(self, format, *args):
        """Nothing on the screen."""

    def do_HEAD(self):
        self._file()

    def do_GET(self):
        self._file()

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append(f"POST {self.path}")
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = asked["name"]
            if asked.get("organization"):
                name = f"{asked['organization']}/{name}"
            self.server.files.setdefault(name, {})
            return self._json({"url": f"{self.server.address}/{name}", "name": name})
        if self.path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if match := re.fullmatch(r"/api/models/(.+?)/preupload/[^/?]+.*", self.path):
            return self._json({"files": [self._mode(f["path"]) for f in json.loads(body)["files"]]})
        if self.path.endswith(".git/info/lfs/objects/batch"):
            upload = f"{self.server.address}/upload/"
            return self._json(
                {
                    "transfer": "basic",
                    "objects": [
                        o | {"actions": {"upload": {"href": upload + o["oid"]}}}
                        for o in json.loads(body)["objects"]
                    ],
                }
            )
        if match := re.fullmatch(r"/api/models/(.+?)/commit/[^/?]+.*", self.path):
            return self._commit(match[1], body)
        self._json({"error": "unknown"}, 404)

    def do_PUT(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        oid = self.path.rsplit("/", 1)[1]
        good = hashlib.sha256(body).hexdigest() == oid
        if good:
            self.server.objects[oid] = body
        self._json({}, 200 if good else 400)

    def _mode(self, path: str) -> dict:
        mode = "lfs" if path.endswith(".safetensors") else "regular"
        return {"path": path, "uploadMode": mode, "shouldIgnore": False}

    def _commit(self, repository: str, body: bytes) -> None:
        files = self.server.files[repository]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
        commit = self.server.commit_of(repository)
        url = f"{self.server.address}/{repository}/commit/{commit}"
        self._json({"commitUrl": url, "commitOid": commit, "success": True})

    def _file(self) -> None:
        """HEAD and GET of OWNER/NAME/resolve/REVISION/PATH."""
        self.server.requests.append(f"{self.command} {self.path}")
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
        repository = match[1] if match else ""
        files = self.server.files.get(repository)
        if match is None or files is None:
            return self._json({"error": "none"}, 404, code="RepoNotFound")
        commit = self.server.commit_of(repository)
        if match[2] not in ("main", commit):
            return self._json({"error": "none"}, 404, code="RevisionNotFound")
        if match[3] not in files:
            return self._json({"error": "none"}, 404, code="EntryNotFound", commit=commit)
        content = files[match[3]]
        self.send_response(200)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def _json(self, value: dict, status: int = 200, *, code: str = "", commit: str = "") -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        if commit:
            self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
