"""Connections that end: what uvicorn's options leave open is clients that take for ever to ask, or
to read."""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

from deftx.serving import Limits


def protocol(limits: Limits) -> type[H11Protocol]:
    """The protocol of a server with these limits, for uvicorn's option `http`."""

    class Limited(H11Protocol):
        """Closes a connection whose request does not come, or whose answer is not taken, within
        `limits.seconds`.

        The time runs while no request is being answered: from the first byte on, or the
        connection's start. Of connections beyond twice `limits.connections`, which clients keep
        open without asking, nothing is read.
        """

        deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > 2 * limits.connections:
                transport.abort()
                return
            self.start_deadline()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.is_answering():
                self.stop_deadline()
            elif self.deadline is None:
                self.start_deadline()

        def pause_writing(self) -> None:
            super().pause_writing()
            self.start_deadline()

        def resume_writing(self) -> None:
            super().resume_writing()
            self.stop_deadline()

        def connection_lost(self, exc: Exception | None) -> None:
            self.stop_deadline()
            super().connection_lost(exc)

        def shutdown(self) -> None:
            """At the server's end: a client that has not sent its whole request is not waited
            for."""
            incomplete = self.is_answering() and self.cycle.more_body
            if incomplete or not self.is_answering() or self.flow.write_paused:
                self.transport.abort()
            else:
                super().shutdown()

        def is_answering(self) -> bool:
            """Whether the head of a request is there, and not all of its answer."""
            return self.cycle is not None and not self.cycle.response_complete

        def start_deadline(self) -> None:
            self.stop_deadline()
            self.deadline = self.loop.call_later(limits.seconds, self.transport.abort)

        def stop_deadline(self) -> None:
            if self.deadline is not None:
                self.deadline.cancel()
                self.deadline = None

    return Limited
