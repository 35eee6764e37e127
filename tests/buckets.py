"""A server that speaks the protocol of S3, in this process: moto. Nothing outside the machine is asked."""

import logging
import secrets
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from werkzeug.serving import make_server

#: what tests ask for: a request, as WSGI has it → None, or the status that is answered instead
Fault = Callable[[dict[str, Any]], str | None]
#: the status that is answered although the request is done: its answer is lost
LOST = "500 Lost"
NAME = "models"


class S3Server:
    """Answers one request at a time, because moto looks at a condition and writes in two steps, and S3 in one.

    Attributes:
        url: of the server. requests: (method, path) of each request. fault: looks at every request first.
    """

    def __init__(self) -> None:
        from moto.server import DomainDispatcherApplication, MotoRequestHandler, create_backend_app

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.requests: list[tuple[str, str]] = []
        self.fault: Fault = lambda request: None
        self._answer = DomainDispatcherApplication(create_backend_app)
        self._one = threading.Lock()
        self._server = make_server("127.0.0.1", 0, self._serve, threaded=True, request_handler=MotoRequestHandler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def _serve(self, request: dict[str, Any], start: Any) -> Any:
        self.requests.append((request["REQUEST_METHOD"], request["PATH_INFO"]))
        status = self.fault(request)
        if status is None:
            with self._one:
                return self._answer(request, start)
        if status == LOST:
            with self._one:
                self._answer(request, lambda *_: None)
        else:
            request["wsgi.input"].read(int(request.get("CONTENT_LENGTH") or 0))
        start(status, [("Content-Type", "application/xml")])
        return [b""]

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """One server for all tests."""
    server = S3Server()
    yield server
    server.stop()


@pytest.fixture
def bucket(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The URL of an empty store, with its credentials in the environment and an empty cache on this machine."""
    import boto3

    environment = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}
    environment |= {"AWS_ENDPOINT_URL": s3_server.url, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(s3_server, "fault", lambda request: None)
    boto3.client("s3", region_name="us-east-1").create_bucket(Bucket=NAME)
    return f"s3://{NAME}/{secrets.token_hex(6)}"
