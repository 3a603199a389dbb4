"""A Switcher over HTTP: `/predict`, `/languages`, `/health`, `/openapi.json`, and a page to try
it."""

import asyncio
import hmac
import socket
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import Headers
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import deftx
from deftx.data.examples import Examples, check_pairs
from deftx.errors import DeftxError, unknown
from deftx.models.switcher import Switcher
from deftx.serving import Access, Limits
from deftx.serving.answers import ANSWERS, Said
from deftx.serving.batches import Batches, Busy
from deftx.serving.connections import protocol
from deftx.tasks.base import check_columns
from deftx.tasks.registry import TASKS

PAGE = Path(__file__).with_name("page.html")
# the page needs nothing from anywhere else, and may have nothing
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src "
    "'self'; img-src data:"
)
STOPPING = 60  # seconds that a stop waits for answers
KEPT_ALIVE = 5  # seconds that a connection stays open after an answer
LONGEST_HEAD = 16_384  # bytes of a request before its body
LOOPBACK = ("localhost", "127.0.0.1", "::1", "[::1]")
OPEN_PATHS = ("/", "/health")  # which need no token: the page asks for it


class Asked(BaseModel):
    """Texts to be answered."""

    model_config = ConfigDict(extra="forbid")
    texts: list[str] = Field(
        min_length=1, description="Of question answering and multiple choice, the questions."
    )
    pairs: list[str] | None = Field(
        None,
        description="Second texts, such as hypotheses, or the contexts of questions: one for each"
        " text.",
    )
    parts: list[list[str]] | None = Field(
        None,
        description="For each text its options, or its words, where they are not what stands"
        " between spaces.",
    )
    language: str | list[str | None] | None = Field(
        description="The language of all texts, or a list with one for each; null: the task"
        " without a language vector."
    )


class Problem(BaseModel):
    """What is wrong and what to do, in one line."""

    detail: str


class Languages(BaseModel):
    """What can be asked for."""

    languages: list[str]
    kind: str = Field(description="Of the task, such as classification or tagging.")
    labels: list[str] = Field(description="Of the task, if it has labels.")
    pairs: bool | None = Field(
        description="Whether the task reads pairs of texts; null: not known."
    )


class Health(BaseModel):
    """Whether texts are answered, and how many wait."""

    status: str
    waiting: int


def make_app(
    switcher: Switcher, limits: Limits | None = None, access: Access | None = None
) -> FastAPI:
    """The web application. One thread has the model; an end of the application ends it when all
    have been answered."""
    limits, access, answers = limits or Limits(), access or Access(), ANSWERS[switcher.kind]

    def answer_batch(examples: Examples, language: str | None) -> list[Said]:
        # Warnings quote texts, and nothing of what clients send may be logged
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return answers.say(switcher, examples, [language] * len(examples))

    batches: Batches[Said] = Batches(answer_batch, waiting=limits.waiting)

    @asynccontextmanager
    async def until_answered(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(batches.close)

    app = FastAPI(
        title="deftx",
        version=deftx.__version__,
        docs_url=None,
        redoc_url=None,
        lifespan=until_answered,
    )  # the pages that FastAPI has for its docs load scripts from elsewhere
    app.add_middleware(_BodyLimit, most=limits.body, seconds=limits.seconds)
    if access.token is not None:
        app.add_middleware(_TokenCheck, token=access.token)
    if access.hosts:  # the last that is added is the first to see a request
        app.add_middleware(
            TrustedHostMiddleware, allowed_hosts=list(access.hosts), www_redirect=False
        )
        app.add_middleware(_LowerCaseHost)  # older releases of starlette compare cases
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(400, _unreadable)
    app.add_exception_handler(Exception, _failed)

    problems: dict[int | str, dict[str, Any]] = {
        code: {"model": Problem} for code in (401, 408, 413, 422, 503)
    }

    @app.post("/predict", response_model=answers.form, responses=problems)
    async def predict(asked: Asked) -> dict[str, list[Said]]:
        """What the task says of texts, each in its language, in the order of the texts."""
        examples, languages = _checked(asked, switcher, limits)
        try:
            waiting = batches.submit(examples, languages)
        except Busy as error:
            raise HTTPException(503, str(error), {"Retry-After": "1"}) from error
        found = await asyncio.gather(*map(asyncio.wrap_future, waiting))
        return {
            "predictions": [
                {"language": name, **said} for name, said in zip(languages, found, strict=True)
            ]
        }

    @app.get("/languages")
    async def languages() -> Languages:
        """The names of the languages, the kind of task, its labels, and whether it reads pairs of
        texts."""
        return Languages(
            languages=list(switcher.languages),
            kind=switcher.kind,
            labels=list(switcher.labels),
            pairs=switcher.pairs,
        )

    @app.get("/health", responses={503: {"model": Problem}})
    async def health() -> Health:
        """Whether texts are answered."""
        if not batches.alive:
            raise HTTPException(
                503, "the thread that has the model has ended: start the server again"
            )
        return Health(status="ok", waiting=batches.waiting)

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(
            PAGE.read_text(encoding="utf-8"), headers={"Content-Security-Policy": POLICY}
        )

    return app


def serve(
    switcher: Switcher, limits: Limits, host: str, port: int, access: Access | None = None
) -> None:
    """Answer requests until SIGINT or SIGTERM: those at hand are answered before the signal takes
    its usual effect.

    Args:
        switcher: Answers them.
        limits: What a request may be.
        host: The address to listen at.
        port: The port; 0: any that is free.
        access: Who may ask. Without names of hosts, at an address of this machine alone, clients
            may ask under its usual names only, so that no page of the web reaches the server by a
            name that it points there.

    Raises:
        DeftxError: The address cannot be had.
    """
    access = access or Access()
    if not access.hosts and host in LOOPBACK:
        access = replace(access, hosts=LOOPBACK)
    app, listening = make_app(switcher, limits, access), _listen(host, port)
    shown = f"[{host}]" if ":" in host else host
    names = ", ".join(switcher.languages) or "the task alone"
    print(
        f"serving {names} at http://{shown}:{listening.getsockname()[1]} (Ctrl-C stops)", flush=True
    )
    config = uvicorn.Config(
        app,
        http=protocol(limits),
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=limits.connections,
        timeout_keep_alive=KEPT_ALIVE,
        timeout_graceful_shutdown=STOPPING,
        h11_max_incomplete_event_size=LONGEST_HEAD,
    )
    uvicorn.Server(config).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DeftxError(
            f"cannot listen at {host}, port {port}: {reason}: choose others, --host and --port"
        ) from error


def _checked(asked: Asked, switcher: Switcher, limits: Limits) -> tuple[Examples, list[str | None]]:
    """What is asked, and the language of each text. Raises HTTPException for what is too large and
    for what does not fit together."""
    task = TASKS[switcher.kind]
    count = len(asked.texts)
    languages = asked.language if isinstance(asked.language, list) else [asked.language] * count
    parts = asked.parts or []

    # How much is asked
    sizes = {"texts": count}
    if task.required_columns.get("parts"):  # options: each is read beside its text
        sizes["options"] = sum(map(len, parts))
    for what, size in sizes.items():
        if size > limits.texts:
            raise HTTPException(
                413, f"{size} {what}; at most {limits.texts} are taken at once: ask in parts"
            )
    texts = [*asked.texts, *(asked.pairs or []), *map(" ".join, parts)]
    longest = max(map(len, texts))
    if longest > limits.chars:
        raise HTTPException(
            413, f"a text of {longest:,} characters; at most {limits.chars:,} are taken: shorten it"
        )
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:  # what JSON can say and no tokenizer takes
        raise HTTPException(
            422, "a text holds half a character, a surrogate by itself: send whole ones"
        ) from error

    # Whether it fits together, and fits the task
    columns = {"pairs": asked.pairs, "parts": asked.parts, "languages": languages}
    for what, column in columns.items():
        if column is not None and len(column) != count:
            raise HTTPException(
                422, f"{count} texts and {len(column)} {what}: give one for each text"
            )
    for name in dict.fromkeys(languages):
        if name is not None and name not in switcher.languages:
            raise HTTPException(422, str(unknown("language", name, switcher.languages)))
    try:
        examples = Examples(asked.texts, asked.pairs, parts=asked.parts)
        check_columns(task, examples)
        check_pairs(switcher.pairs, examples)
    except DeftxError as error:
        raise HTTPException(422, str(error)) from error
    return examples, languages


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    """What is wrong with a request, in one line."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return JSONResponse({"detail": f"body: not JSON, at character {first['loc'][-1]}"}, 422)
    where = ".".join(str(part) for part in first["loc"][1:])[:100]
    return JSONResponse(
        {"detail": f"{where or 'body'}: {first['msg'][:1].lower()}{first['msg'][1:]}"}, 422
    )


async def _unreadable(_: Request, error: Exception) -> JSONResponse:
    """A body of which FastAPI can make nothing: bytes that are no UTF-8, too deep, a number too
    long."""
    return JSONResponse({"detail": "body: not JSON that can be read"}, 422)


async def _failed(_: Request, error: Exception) -> JSONResponse:
    """A mistake of ours: its traceback is in the log."""
    return JSONResponse(
        {"detail": f"the server failed ({type(error).__name__}): its log says why"}, 500
    )


class _LowerCaseHost:
    """Hands on requests with their Host header in lower case: names of hosts have no case."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = []
            for name, value in scope["headers"]:
                headers.append((name, value.lower() if name == b"host" else value))
            scope = {**scope, "headers": headers}
        await self.app(scope, receive, send)


class _TokenCheck:
    """Answers requests without the token with 401, but for the page and the question whether the
    server is well."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app, self.expected = app, f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            sent = Headers(scope=scope).get("authorization", "").encode("latin1")
            if not hmac.compare_digest(sent, self.expected):
                detail = "the token is missing or wrong: send it as `Authorization: Bearer TOKEN`"
                answer = JSONResponse({"detail": detail}, 401, {"WWW-Authenticate": "Bearer"})
                await answer(scope, receive, send)
                return
        await self.app(scope, receive, send)


class _BodyLimit:
    """Answers requests of more than `most` bytes with 413, those that take more than `seconds` to
    come with 408.

    It hands the others on, with their whole body.
    """

    def __init__(self, app: ASGIApp, most: int, seconds: float) -> None:
        self.app, self.most, self.seconds = app, most, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body, size, more = bytearray(), 0, True
        try:
            async with asyncio.timeout(self.seconds):
                while (
                    more and size <= 16 * self.most
                ):  # what is too long is read all the same: clients wait for that
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return
                    part, more = message.get("body", b""), message.get("more_body", False)
                    size += len(part)
                    if size <= self.most:
                        body += part
        except TimeoutError:
            too_slow = (
                f"the request has taken longer than {self.seconds:g} seconds to come: send it at "
                "once"
            )
            answer = JSONResponse({"detail": too_slow}, 408, {"Connection": "close"})
            await answer(scope, receive, send)
            return
        if size > self.most:
            too_long = f"the request is too long; at most {self.most:,} bytes are taken"
            await JSONResponse({"detail": too_long}, 413)(scope, receive, send)
            return
        whole: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def again() -> Message:
            return whole.pop() if whole else await receive()

        await self.app(scope, again, send)
