"""The experts and the policies over HTTP, behind the key of management.

vLLM's two routes for adapters lead here too.
"""

from pathlib import Path
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse, PlainTextResponse, Response

from adapters.files.facts import resolve
from tta_serve.exceptions import RequestError
from tta_serve.protocol import ExpertChange, ExplainRequest
from tta_serve.serving.experts.kinship import Kinship
from tta_serve.serving.replica.peers import Peers


class LoadAdapter(BaseModel):
    """As vLLM has it."""

    model_config = ConfigDict(extra="forbid")

    lora_name: str = Field(min_length=1)
    lora_path: str | None = None
    """A folder of the library."""
    load_inplace: bool = False
    """In place of the expert that has the name now."""


class UnloadAdapter(BaseModel):
    """As vLLM has it."""

    model_config = ConfigDict(extra="forbid")

    lora_name: str = Field(min_length=1)
    lora_int_id: int | None = None


def experts_router(replica: Any, peers: Peers, library: Path) -> APIRouter:
    """Return the routes that manage experts.

    Args:
        library: The folder that experts are loaded from.
    """
    router = APIRouter(tags=["management"])
    kinship = Kinship(library)

    async def report() -> Response:
        return JSONResponse({"replicas": await peers.ask("experts")})

    async def changed(change: ExpertChange) -> Response:
        await peers.change(change)
        return await report()

    @router.get("/admin/experts")
    async def experts() -> Response:
        """What each replica serves."""
        return await report()

    @router.get("/admin/experts/kinship")
    async def find_kinship() -> Response:
        """How alike the experts are: the cosine of each pair of their deltas."""
        digests = (await replica.experts())["experts"]
        return JSONResponse(await kinship.find(digests))

    @router.put("/admin/experts/{name}")
    async def load_expert(name: str, replaces: str | None = None) -> Response:
        """Load an expert from the library's folder, in place of the one with this digest."""
        return await changed(ExpertChange(name, False, replaces))

    @router.delete("/admin/experts/{name}")
    async def unload_expert(name: str, digest: str) -> Response:
        """Unload the expert with this digest."""
        return await changed(ExpertChange(name, True, digest))

    @router.get("/admin/policies")
    async def policies() -> Response:
        """The policies, as this replica has them."""
        return JSONResponse(await replica.policies())

    @router.post("/admin/policies/explain")
    async def explain(ask: ExplainRequest) -> Response:
        """What policies would do with a prompt, and what examples they know of the experts."""
        found = await replica.explain(ask)
        known = replica.describe_examples()
        return JSONResponse(
            {
                "policies": [explained.model_dump() for explained in found],
                "examples": [one.model_dump() for one in known],
            }
        )

    _add_vllm_routes(router, replica, peers, library)
    return router


def _add_vllm_routes(router: APIRouter, replica: Any, peers: Peers, library: Path) -> None:
    """Add vLLM's own two routes for adapters."""

    @router.post("/v1/load_lora_adapter")
    async def load_adapter(ask: LoadAdapter) -> Response:
        """Load an expert from the library's folder."""
        _check_place(ask, library)
        now = (await replica.experts())["experts"].get(ask.lora_name)
        if now is not None and not ask.load_inplace:
            message = (
                f"expert {ask.lora_name!r} is loaded already; send load_inplace to load it anew"
            )
            raise RequestError(message, param="lora_name")
        await peers.change(ExpertChange(ask.lora_name, False, now))
        return PlainTextResponse(f"Success: LoRA adapter '{ask.lora_name}' added successfully.")

    @router.post("/v1/unload_lora_adapter")
    async def unload_adapter(ask: UnloadAdapter) -> Response:
        """Unload an expert."""
        now = (await replica.experts())["experts"].get(ask.lora_name)
        await peers.change(ExpertChange(ask.lora_name, True, now))
        return PlainTextResponse(f"Success: LoRA adapter '{ask.lora_name}' removed successfully.")


def _check_place(ask: LoadAdapter, library: Path) -> None:
    """Raise RequestError for a folder that is not the library's of that name."""
    if ask.lora_path is None:
        return
    place = resolve(library / ask.lora_path)
    if place != resolve(library / ask.lora_name):
        raise RequestError(
            f"experts come from the library's folder: put it there as {ask.lora_name!r} (tta"
            " experts add), and leave lora_path out, or let it name that folder",
            param="lora_path",
        )
