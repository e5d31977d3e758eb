"""Management over HTTP, behind a key of its own: the experts of all replicas, and what the policies do."""

import asyncio
import secrets
from typing import Any

from fastapi import Request
from starlette.responses import JSONResponse, Response

from tta_serve.config import KEY_VARIABLE
from tta_serve.engine.ray_private import broadcast
from tta_serve.experts import Change
from tta_serve.protocol import ExplainRequest, RequestError


class Admin:
    """Part of the ingress. A change is staged in every replica, and made only if none refuses it."""

    _admin_key: str | None
    _default_serve_handles: dict[str, Any]
    _served: str
    _changing: asyncio.Lock

    async def experts(self, request: Request) -> Response:
        """What each replica serves."""
        self._check_key(request)
        return JSONResponse({"replicas": await self._all("experts")})

    async def load_expert(self, request: Request, name: str, replaces: str | None = None) -> Response:
        """Load `name` from the library's folder, in place of the expert with the digest `replaces`."""
        return await self._change(request, Change(name, False, replaces))

    async def unload_expert(self, request: Request, name: str, digest: str) -> Response:
        return await self._change(request, Change(name, True, digest))

    async def policies(self, request: Request) -> Response:
        """The policies, as one replica has them."""
        self._check_key(request)
        return JSONResponse(await self._one.policies.remote())

    async def explain(self, request: Request, ask: ExplainRequest) -> Response:
        """What policies would do with a prompt, in one replica, without an answer to it."""
        self._check_key(request)
        found = await self._one.explain.remote(ask)
        if isinstance(found, RequestError):
            raise found
        return JSONResponse({"policies": [explained.model_dump() for explained in found]})

    async def _change(self, request: Request, change: Change) -> Response:
        self._check_key(request)
        if self._changing.locked():
            raise RequestError("another change is under way; try again when it is done", status=409)
        async with self._changing:
            staged = False
            try:
                refusals = [refusal for refusal in await self._all("stage", change) if refusal is not None]
                staged = not refusals
            finally:
                await self._all("commit" if staged else "discard")
        if refusals:
            raise refusals[0]
        return await self.experts(request)

    async def _all(self, method: str, *args: Any) -> list[Any]:
        """What a method of the server returns in each replica."""
        handle = self._default_serve_handles[self._served]
        found: list[Any] = await asyncio.to_thread(broadcast, handle, method, args)
        return found

    @property
    def _one(self) -> Any:
        """A handle of which any one replica answers a call."""
        return self._default_serve_handles[self._served].options(stream=False)

    def _check_key(self, request: Request) -> None:
        """Raises RequestError: 403 if management is off, 401 for a wrong key."""
        if not self._admin_key:
            raise RequestError(f"management is off; start the server with {KEY_VARIABLE} in its environment", status=403)
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not secrets.compare_digest(given.encode(), self._admin_key.encode()):
            raise RequestError("management wants its own key: Authorization: Bearer KEY", status=401)
