"""A server around a stand-in for the model, and requests to it."""

import http.client
import json
import socket
import threading
from contextlib import contextmanager

import pytest
import torch

from deftx.serving import Limits
from deftx.serving.app import make_app
from deftx.serving.connections import protocol

uvicorn = pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

NAMES = ["ace", "ban", "min"]

LABELS = ("bad", "good")


class StandIn:
    """What the application needs of a Switcher; says how long a text is and which language it was
    asked in."""

    languages, kind, labels, pairs = tuple(NAMES), "classification", LABELS, None

    def __init__(self):
        self.go, self.begun = threading.Event(), threading.Event()
        self.go.set()

    def probabilities(self, examples, languages):
        self.begun.set()
        self.go.wait()
        if "break" in examples.texts:
            raise RuntimeError("broken")
        number = [*NAMES, None].index
        share = [
            [len(text) / 100, number(name) / 10]
            for text, name in zip(examples.texts, languages, strict=True)
        ]
        return torch.tensor(share, dtype=torch.float64)


@contextmanager
def serving(switcher, limits=None, access=None):
    """The port at which a switcher is served."""
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        make_app(switcher, limits, access),
        http=protocol(limits or Limits()),
        limit_concurrency=(limits or Limits()).connections,
        log_level="critical",
        access_log=False,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


def call(port, path, body=None, **headers):
    """Status, headers and content of an answer; a body is posted, as JSON where it is not bytes."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    content = (
        json.dumps(body).encode() if body is not None and not isinstance(body, bytes) else body
    )
    headers = {"Content-Type": "application/json", **headers}
    connection.request("GET" if body is None else "POST", path, content, headers)
    answer = connection.getresponse()
    found = answer.status, dict(answer.getheaders()), answer.read()
    connection.close()
    return found


def ask(port, texts, language, **more):
    status, _, content = call(port, "/predict", {"texts": texts, "language": language, **more})
    return status, json.loads(content)
