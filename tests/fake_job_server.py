"""A job server as Ray's dashboard has it, as far as `submit`, `status`, `logs`, `stop` and `doctor` ask it."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class FakeJobServer:
    """Runs no job: it keeps what it is sent, and says of jobs what a test wants.

    Args:
        token: wanted from every caller; None: everybody is answered.
    """

    def __init__(self, token: str | None = None) -> None:
        self.token = token
        self.jobs: list[dict[str, Any]] = []
        self.packages: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.after_stop = "STOPPED"
        self.printed = ""
        self.ray_version = "2.60.0"

    def add(self, job: str, status: str, **more: Any) -> None:
        """A job that was submitted before."""
        details = {"type": "SUBMISSION", "submission_id": job, "status": status, "entrypoint": "echo", **more}
        self.jobs.append(details)

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """Status and JSON."""
        self.requests.append(f"{method} {path}")
        if path == "/api/version":
            return 200, {"version": "4", "ray_version": self.ray_version, "ray_commit": ""}
        if path.startswith("/api/packages/"):
            if method == "PUT":
                self.packages[path.rpartition("/")[2]] = body
            return (200 if method == "PUT" or path.rpartition("/")[2] in self.packages else 404), {}
        if path == "/api/jobs/" and method == "POST":
            sent = json.loads(body)
            self.add(sent.pop("submission_id"), "PENDING", start_time=1_700_000_000_000, **sent)
            return 200, {"job_id": self.jobs[-1]["submission_id"], "submission_id": self.jobs[-1]["submission_id"]}
        if path == "/api/jobs/":
            return 200, self.jobs
        if path.endswith("/stop"):
            job = next(job for job in self.jobs if job["submission_id"] == path.split("/")[3])
            job.update(status=self.after_stop, end_time=1_700_000_060_000)
            return 200, {"stopped": True}
        if path.endswith("/logs"):
            return 200, {"logs": self.printed}
        return 404, {}


@contextmanager
def serve(server: FakeJobServer) -> Iterator[str]:
    """Its address, while it answers."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if server.token and self.headers.get("Authorization") != f"Bearer {server.token}":
                status, answer = 401, "Unauthorized: Missing authentication token"
            else:
                status, answer = server.answer(self.command, self.path, body)
            text = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PUT = _answer

        def log_message(self, *_: Any) -> None:
            """Nothing on the terminal of the tests."""

    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.server_address[1]}"
    finally:
        listening.shutdown()
        listening.server_close()
        thread.join(timeout=10)
