"""`deftx serve`: one base over HTTP, many languages. `batches` groups what waits, `app` is what
clients see."""

from dataclasses import dataclass, field

from deftx.errors import DeftxError


@dataclass(frozen=True)
class Limits:
    """What one request may hold, and how many texts may wait for an answer.

    Attributes:
        texts: Texts in a request.
        chars: Characters in a text.
        body: Bytes of a request's body.
        waiting: Texts that may wait, over all requests.
        connections: Connections that are open at once.
        seconds: Time for a client to send a request, and to take what it is answered.

    Raises:
        DeftxError: A request may have more texts than may wait.
    """

    texts: int = 64
    chars: int = 10_000
    body: int = 1 << 20
    waiting: int = 1024
    connections: int = 1000
    seconds: float = 30

    def __post_init__(self) -> None:
        if self.texts > self.waiting:
            both = (
                f"{self.texts} texts in a request (--max-texts), but {self.waiting} may wait "
                "(--max-waiting)"
            )
            raise DeftxError(f"{both}: let at least as many wait")


@dataclass(frozen=True)
class Access:
    """Who is answered.

    Attributes:
        hosts: The names under which clients may ask (the `Host` of a request; `*.example.org` is
            any below one). Empty: any.
        token: What clients have to send as `Authorization: Bearer TOKEN`; None: nothing.

    Raises:
        DeftxError: Something is no name of a host, or no token.
    """

    hosts: tuple[str, ...] = ()
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name in self.hosts:
            wildcard = name == "*" or (name.startswith("*.") and "*" not in name[1:])
            if not name or ("*" in name and not wildcard):
                raise DeftxError(
                    f"{name!r} is no name of a host: write one such as example.org or *.example.org"
                )
        if self.token is not None and not (
            self.token.isascii() and self.token.isprintable() and self.token.strip()
        ):
            raise DeftxError(
                "the token is empty, or has other characters than those of ASCII: choose another"
            )
