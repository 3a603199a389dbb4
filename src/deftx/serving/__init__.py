"""`deftx serve`: one base over HTTP, many languages. `batches` groups what waits, `app` is what clients see."""

from dataclasses import dataclass

from deftx.errors import DeftxError


@dataclass(frozen=True)
class Limits:
    """What one request may hold, and how many texts may wait for an answer.

    texts    in a request
    chars    in a text
    body     bytes of a request's body
    waiting  texts, over all requests; at least `texts`, else DeftxError
    """

    texts: int = 64
    chars: int = 10_000
    body: int = 1 << 20
    waiting: int = 1024

    def __post_init__(self) -> None:
        if self.texts > self.waiting:
            both = f"{self.texts} texts in a request (--max-texts), but {self.waiting} may wait (--max-waiting)"
            raise DeftxError(f"{both}: let at least as many wait")
