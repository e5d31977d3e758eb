"""The config over HTTP, behind the key of management."""

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict
from starlette.responses import JSONResponse, Response

from tta_serve import metrics
from tta_serve.config.reload import list_differences, reload_config, select_reloadable
from tta_serve.exceptions import ConfigError, RequestError
from tta_serve.protocol import ConfigChange
from tta_serve.serving.access.key_ring import CALLER
from tta_serve.serving.replica.config_history import ConfigVersion
from tta_serve.serving.replica.peers import Peers


class Rollback(BaseModel):
    """Which version is to be in force again."""

    model_config = ConfigDict(extra="forbid", strict=True)

    to: int | None = None
    """None for the one before the present one."""


def config_router(replica: Any, peers: Peers) -> APIRouter:
    """Return the routes that show and change the config."""
    router = APIRouter(tags=["management"])
    desk = _ConfigDesk(replica, peers)

    @router.get("/admin/config")
    async def config() -> Response:
        """The config that is in force, without secrets."""
        return JSONResponse(replica.describe_config())

    @router.get("/admin/config/history")
    async def history() -> Response:
        """The versions since the start, what each changed, and by whom."""
        versions = await desk.read_history()
        shown = [version.model_dump(mode="json", exclude={"given"}) for version in versions]
        return JSONResponse({"version": versions[-1].version, "versions": shown})

    @router.put("/admin/config")
    async def change_config(
        request: Request, dry_run: bool = False, replaces: int | None = None
    ) -> Response:
        """Serve by these values from now on, if every replica can; the rest stays as it is."""
        given = await _read_body(request)
        return JSONResponse(await desk.change(given, _label(request), replaces, dry_run=dry_run))

    @router.post("/admin/config/rollback")
    async def roll_back(request: Request, rollback: Rollback | None = None) -> Response:
        """Serve by an earlier version again."""
        versions = await desk.read_history()
        wanted = rollback.to if rollback and rollback.to is not None else versions[-1].version - 1
        found = {version.version: version.given for version in versions}
        if wanted not in found:
            raise RequestError(
                f"there is no version {wanted} of the config; there are:"
                f" {', '.join(map(str, found))}",
                status=404,
                param="to",
            )
        return JSONResponse(await desk.change(found[wanted], _label(request)))

    return router


class _ConfigDesk:
    """What the routes do."""

    def __init__(self, replica: Any, peers: Peers) -> None:
        self._replica = replica
        self._peers = peers

    async def read_history(self) -> list[ConfigVersion]:
        """Return the versions, the present one last."""
        versions: list[ConfigVersion] = await asyncio.to_thread(self._replica.history.read)
        return versions

    async def change(
        self,
        given: Mapping[str, Any],
        by: str,
        replaces: int | None = None,
        *,
        dry_run: bool = False,
    ) -> dict[str, Any]:
        """Change the config of all replicas, or of none.

        Args:
            given: The new values, in the form of YAML.
            by: Who wants it.
            replaces: The version that it is meant to replace, None for whichever is in force.
            dry_run: Whether only to see if it can be done.

        Returns:
            The version that is in force then, and the places that were changed.

        Raises RequestError: 400 for a config that cannot be used, 409 if another version is in
        force, and what `Peers.change` raises.
        """
        before = await self.read_history()
        now = before[-1]
        if replaces not in (None, now.version):
            raise RequestError(
                f"version {now.version} of the config is in force, not {replaces}",
                status=409,
                param="replaces",
            )
        try:
            wanted = select_reloadable(reload_config(self._replica.config, given))
        except ConfigError as error:
            metrics.config_changes.labels("refused").inc()
            raise RequestError(str(error)) from None
        changed = list_differences(now.given, wanted)
        if not changed:
            return {"version": now.version, "changed": []}

        new = ConfigVersion(
            version=now.version + 1, at=datetime.now(UTC), by=by, changed=changed, given=wanted
        )
        keep = partial(asyncio.to_thread, self._replica.history.add, before, new)
        try:
            await self._peers.change(
                ConfigChange(new.version, wanted), None if dry_run else keep, dry_run=dry_run
            )
        except RequestError:
            metrics.config_changes.labels("refused").inc()
            raise
        if not dry_run:
            metrics.config_changes.labels("made").inc()
        return {"version": now.version if dry_run else new.version, "changed": changed}


async def _read_body(request: Request) -> dict[str, Any]:
    try:
        given = await request.json()
    except ValueError:
        given = None
    if not isinstance(given, dict):
        raise RequestError(
            "the body is a JSON object of the config's sections, such as"
            ' {"server": {"max_queued": 64}}'
        )
    return given


def _label(request: Request) -> str:
    return request.scope[CALLER].label or "nobody"
