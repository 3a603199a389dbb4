"""`deftx serve`: one base over HTTP, many languages. `batches` groups what waits, `app` is what clients see."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What one request may hold, and how many texts may wait for an answer.

    texts    in a request
    chars    in a text
    body     bytes of a request's body
    waiting  texts, over all requests
    """

    texts: int = 64
    chars: int = 10_000
    body: int = 1 << 20
    waiting: int = 1024
