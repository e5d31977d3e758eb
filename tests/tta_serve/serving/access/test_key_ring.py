"""Whose key a request carries, and where it may go."""

import hashlib
from typing import Any

import pytest

from tta_serve.config.access import AccessConfig
from tta_serve.exceptions import RequestError
from tta_serve.serving.access.key_ring import ANYBODY, Caller, KeyRing

CHAT, ADMIN = "/v1/chat/completions", "/admin/kill"
SCOPES: dict[str, set[str]] = {
    "shop": {"infer"},
    "teacher": {"infer", "feedback"},
    "prometheus": {"metrics"},
    "boss": {"admin"},
}
NEEDS = {
    CHAT: "infer",
    "/v1/models": "infer",
    "/v1/feedback": "feedback",
    "/metrics": "metrics",
    ADMIN: "admin",
    "/v1/load_lora_adapter": "admin",
    "/openapi.json": "infer",
    "/not/there": "infer",
}


def ring(admin: str | None = None, **more: Any) -> KeyRing:
    keys = {
        label: {"sha256": hashlib.sha256(label.encode()).hexdigest(), "scopes": scopes}
        for label, scopes in SCOPES.items()
    }
    return KeyRing(AccessConfig.model_validate({"keys": keys, **more}), admin)


def identify(keys: KeyRing, path: str, key: str | None, header: str = "authorization") -> Caller:
    value = f"Bearer {key}" if header == "authorization" else str(key)
    return keys.identify(path, {} if key is None else {header: value})


@pytest.mark.parametrize("path", list(NEEDS))
@pytest.mark.parametrize("label", list(SCOPES))
def test_a_key_goes_where_its_scopes_lead(path: str, label: str) -> None:
    for header in ("authorization", "x-api-key"):
        if NEEDS[path] in SCOPES[label]:
            caller = identify(ring(), path, label, header)
            assert (caller.label, caller.tenant) == (label, label)
        else:
            with pytest.raises(RequestError, match=f"{label!r} has no scope") as refused:
                identify(ring(), path, label, header)
            assert refused.value.status == 403


@pytest.mark.parametrize("path", list(NEEDS))
@pytest.mark.parametrize("key", [None, "", "Shop", "shop ", "\x00", "ü"])
def test_who_has_no_key_goes_nowhere_but_to_ask_after_its_health(
    path: str, key: str | None
) -> None:
    with pytest.raises(RequestError) as refused:
        identify(ring(), path, key)
    assert refused.value.status == 401
    assert refused.value.headers == {"www-authenticate": "Bearer"}
    assert identify(ring(), "/readyz", key) == identify(ring(), "/healthz", key) == ANYBODY


def test_the_consoles_files_are_open_and_nothing_that_is_called_alike() -> None:
    for path in ("/console", "/console/app.js", "/console/vendor/uplot/uPlot.esm.js"):
        assert identify(ring(), path, None) == ANYBODY
    for path in ("/consoles", "/console.js", "/admin/console"):
        with pytest.raises(RequestError, match="wants"):
            identify(ring(), path, None)


def test_the_key_of_the_environment_manages_and_reads_metrics_alone() -> None:
    for path, scope in NEEDS.items():
        if scope in ("admin", "metrics"):
            assert identify(ring("root"), path, "root").label == "admin"
        else:
            with pytest.raises(RequestError, match="no scope"):
                identify(ring("root"), path, "root")


def test_without_keys_all_but_management_is_open() -> None:
    for admin in (None, ""):
        keys = KeyRing(AccessConfig(), admin)
        for path, scope in NEEDS.items():
            if scope != "admin":
                assert identify(keys, path, "anything") == ANYBODY
            else:
                with pytest.raises(RequestError, match="management is off") as refused:
                    identify(keys, path, "")
                assert refused.value.status == 403


def test_keys_of_one_tenant_are_one_tenant() -> None:
    one = "0" * 64
    config = {"keys": {"a": {"sha256": hashlib.sha256(b"a").hexdigest(), "tenant": "t"}}}
    keys = KeyRing(AccessConfig.model_validate(config), None)
    assert identify(keys, CHAT, "a").tenant == "t"
    with pytest.raises(ValueError, match=r"keys\.b: it is the same key as a"):
        AccessConfig.model_validate({"keys": {"a": {"sha256": one}, "b": {"sha256": one}}})
    with pytest.raises(ValueError, match=r"tenants: no key is of other; keys are of: a"):
        AccessConfig.model_validate({"keys": {"a": {"sha256": one}}, "tenants": {"other": {}}})
