"""The HTTP side: routes, limits, keys, streams. What is written comes from the engine."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from shards.errors import UserError

from ..batch import check_prompt
from ..config import ServeConfig
from ..model.tokenizer import StudentTokenizer
from .answers import Answer, ChatAnswer, CompletionAnswer
from .choices import Choices
from .engine import BusyError, Engine
from .protocol import MAX_CHOICES, ApiError, ChatBody, CompletionBody, Sampled, parse_body

PAGE = Path(__file__).with_name("playground.html")
BODY_PATIENCE_S = 30.0
_PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
}
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
Handler = Callable[[Request], Awaitable[Response]]


class Server:
    def __init__(self, config: ServeConfig, engine: Engine, tokenizer: StudentTokenizer, key: str | None) -> None:
        self.config, self.engine, self.tokenizer, self._key = config, engine, tokenizer, key
        self._created = int(time.time())
        self._local = config.host in ("127.0.0.1", "localhost", "::1")

    def app(self) -> Starlette:
        routes = [
            Route("/", self._answer(self._page, open_to_all=True)),
            Route("/health", self._answer(self._health, open_to_all=True)),
            Route("/metrics", self._answer(self._metrics)),
            Route("/v1/models", self._answer(self._models)),
            Route("/v1/models/{name:path}", self._answer(self._model)),
            Route("/v1/completions", self._answer(self._completions), methods=["POST"]),
            Route("/v1/chat/completions", self._answer(self._chat), methods=["POST"]),
        ]
        return Starlette(routes=routes, exception_handlers={HTTPException: _not_found}, lifespan=self._lifespan)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        self.engine.start()
        yield
        await asyncio.to_thread(self.engine.close)

    def _answer(self, handler: Handler, open_to_all: bool = False) -> Handler:
        """Guard a handler: host, key, errors in one shape, and the count of its answers."""

        async def answer(request: Request) -> Response:
            try:
                self._check_host(request)
                if not open_to_all:
                    self._check_key(request)
                response = await handler(request)
            except ApiError as e:
                headers = {"retry-after": "1"} if e.status in (429, 503) else {}
                response = JSONResponse(e.body, e.status, headers)
            except ClientDisconnect:
                response = Response(status_code=499)
            if not isinstance(response, _Reply):  # those are counted when they have ended
                self._count(request, response.status_code)
            return response

        return answer

    def _count(self, request: Request, status: int) -> None:
        path = request.scope["route"].path.replace("{name:path}", "NAME")
        self.engine.metrics.requests.add(labels=f'path="{path}",status="{status}"')

    def _check_host(self, request: Request) -> None:
        """A page elsewhere must not reach a local server under a name of its own (DNS rebinding)."""
        host = request.headers.get("host", "")
        if self._local and host.rsplit(":", 1)[0] not in _LOOPBACK and host not in _LOOPBACK:
            raise ApiError(421, f"Host {host!r}: this server answers to localhost only.", code="wrong_host")

    def _check_key(self, request: Request) -> None:
        if self._key is None:
            return
        given = request.headers.get("authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {self._key}".encode()):
            what = "Incorrect API key." if given else "No API key; send 'Authorization: Bearer KEY'."
            raise ApiError(401, what, code="invalid_api_key")

    async def _page(self, _: Request) -> Response:
        return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers=_PAGE_HEADERS)

    async def _health(self, _: Request) -> Response:
        alive = self.engine.alive
        return JSONResponse({"status": "ok" if alive else "closing"}, 200 if alive else 503)

    async def _metrics(self, _: Request) -> Response:
        return PlainTextResponse(self.engine.metrics.text(), media_type="text/plain; version=0.0.4")

    def _card(self) -> dict[str, Any]:
        return {"id": self.config.name, "object": "model", "created": self._created, "owned_by": "minicodformer"}

    async def _models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def _model(self, request: Request) -> Response:
        self._check_model(request.path_params["name"])
        return JSONResponse(self._card())

    def _check_model(self, name: str) -> None:
        if name != self.config.name:
            raise ApiError(
                404, f"The model {name!r} is not here; this is {self.config.name!r}.", code="model_not_found"
            )

    async def _completions(self, request: Request) -> Response:
        body = parse_body(CompletionBody, await self._read(request))
        prompts = body.prompts
        if len(prompts) * body.n > MAX_CHOICES:
            raise ApiError(400, f"prompt: {len(prompts)} x n {body.n} choices, at most {MAX_CHOICES}.", param="prompt")
        encoded: list[tuple[list[int], list[tuple[int, int]]]] = []
        for p in prompts:
            ids = await asyncio.to_thread(self.tokenizer.plain, p) if isinstance(p, str) else p
            encoded.append((ids, []))
        return self._start(request, body, encoded, body.logprobs, body.max_tokens or 16, CompletionAnswer)

    async def _chat(self, request: Request) -> Response:
        body = parse_body(ChatBody, await self._read(request))
        messages = [m.plain for m in body.messages]
        try:
            ids = await asyncio.to_thread(self.tokenizer.conversation, messages)
            runs = await asyncio.to_thread(self.tokenizer.runs, messages, ids)
        except UserError as e:
            raise ApiError(400, str(e).replace("generate without --chat", "use /v1/completions")) from None
        limit = body.max_completion_tokens or body.max_tokens or min(512, self.config.max_new_tokens)
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        if body.top_logprobs is not None and not body.logprobs:
            raise ApiError(400, "top_logprobs: only with logprobs true.", param="top_logprobs")
        return self._start(request, body, [(ids, runs)], logprobs, limit, ChatAnswer)

    def _start(
        self,
        request: Request,
        body: Sampled,
        prompts: list[tuple[list[int], list[tuple[int, int]]]],
        logprobs: int | None,
        max_tokens: int,
        kind: type[Answer],
    ) -> Response:
        """Check against the limits, hand the rows to the engine, and answer whole or as a stream."""
        self._check_model(body.model)
        if max_tokens > self.config.max_new_tokens:
            raise ApiError(
                400,
                f"max_tokens: {max_tokens}, at most {self.config.max_new_tokens} on this server.",
                param="max_tokens",
                code="max_tokens_exceeded",
            )
        choices = Choices(self.tokenizer, self.config.timeout_s)
        seed = secrets.randbits(62)
        for ids, runs in prompts:
            self._check_prompt(ids)
            for _ in range(body.n):
                choices.add(ids, runs, body.sampling(len(choices.jobs), max_tokens, seed), logprobs)
        try:
            self.engine.submit(choices.jobs)
        except BusyError as e:
            if e.closing:
                raise ApiError(503, "The server is going down; try again later.", code="shutdown") from None
            raise ApiError(429, "Too many requests are waiting; try again later.", code="queue_full") from None
        prompt_tokens = sum(len(ids) for ids, _ in prompts)
        self.engine.metrics.prompt_tokens.add(prompt_tokens)
        usage = body.stream_options is not None and body.stream_options.include_usage
        answer = kind(self.config.name, choices, self.tokenizer, logprobs is not None, prompt_tokens, usage)
        return _Reply(self.engine, answer, bool(body.stream), partial(self._count, request))

    def _check_prompt(self, ids: list[int]) -> None:
        if len(ids) > self.config.max_prompt_tokens:
            raise ApiError(
                400,
                f"The prompt has {len(ids)} tokens, at most {self.config.max_prompt_tokens} on this server.",
                code="context_length_exceeded",
                param="prompt",
            )
        try:
            check_prompt(self.engine.student, ids)
        except UserError as e:
            raise ApiError(400, str(e), param="prompt") from None

    async def _read(self, request: Request) -> bytes:
        """The body, within the limits of size and patience.

        JSON only: a browser sends that to another site's server only after asking, and we never say yes.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise ApiError(415, f"Content-Type {kind!r}: send application/json.")
        limit = self.config.max_body_bytes
        too_long = ApiError(413, f"The body is larger than {limit} bytes.", code="body_too_large")
        length = request.headers.get("content-length", "0")
        if length.isdigit() and int(length) > limit:
            raise too_long
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_PATIENCE_S):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > limit:
                        raise too_long
        except TimeoutError:
            raise ApiError(408, f"The body did not arrive within {BODY_PATIENCE_S:.0f} s.") from None
        return bytes(body)


class _Reply(Response):
    """Sends an answer whole or as server-sent events, and frees the rows when the client has left."""

    def __init__(self, engine: Engine, answer: Answer, stream: bool, count: Callable[[int], None]) -> None:
        super().__init__()
        self._engine, self._answer, self._stream, self._count = engine, answer, stream, count
        self._status = 499  # what is counted when the client leaves before the end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        send_all = self._send_stream if self._stream else self._send_whole
        sending = asyncio.create_task(send_all(scope, receive, send))
        leaving = asyncio.create_task(_left(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                with contextlib.suppress(OSError):  # the client left while we sent
                    sending.result()
        finally:
            self._count(self._status)
            self._engine.cancel(self._answer.choices.jobs)
            for task in (sending, leaving):
                task.cancel()
            await asyncio.gather(sending, leaving, return_exceptions=True)

    async def _send_whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = JSONResponse(await self._answer.whole())
        except ApiError as e:
            response = JSONResponse(e.body, e.status)
        await response(scope, receive, send)
        self._status = response.status_code

    async def _send_stream(self, _: Scope, __: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            # A client that reads too slowly is let go, too: its rows have long ended by then.
            async with asyncio.timeout(self._answer.choices.timeout_s + 10):
                async for chunk in self._answer.chunks():
                    await send(_event(json.dumps(chunk, ensure_ascii=False)))
            await send(_event("[DONE]"))
            self._status = 200
        except ApiError as e:
            self._status = e.status
            await send(_event(json.dumps(e.body, ensure_ascii=False)))
        except TimeoutError:
            return
        await send({"type": "http.response.body", "body": b""})


def _event(data: str) -> dict[str, Any]:
    return {"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": True}


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _not_found(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text = "No such address" if error.status_code == 404 else str(error.detail)
    problem = ApiError(error.status_code, f"{request.method} {request.url.path}: {text}.")
    return JSONResponse(problem.body, error.status_code, error.headers)
