"""Whatever stands in a config, it is used or refused in words."""

import copy
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import ROOT
from tta_serve.config.effective import describe_config
from tta_serve.config.loading import load, make_config
from tta_serve.config.reload import reload_config, select_reloadable
from tta_serve.config.sections import ServeConfig
from tta_serve.exceptions import ConfigError

DEMO: dict[str, Any] = yaml.safe_load((ROOT / "deploy/demo/serve.yaml").read_text(encoding="utf-8"))
WHOLE: dict[str, Any] = DEMO | {
    "access": {
        "keys": {"shop": {"sha256": "0" * 64, "tenant": "shop", "scopes": ["infer"]}},
        "tenants": {"shop": {"experts": ["sql"], "policies": ["base", "gate"]}},
    },
    "store": {"url": "sqlite:///tta.db"},
    "experiments": {"shadow": {"policy": "gate", "share": 0.5}},
    "server": {"port": 8000, "admin_port": 8001},
    "mix": {"grid": 0.05},
}

leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["base", "gate", "inline", "sql", "~", "sqlite:///x", "postgresql://", "::1"])
)
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=6) | st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)


@st.composite
def changed_configs(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a config that says one to three strange things somewhere."""
    config = copy.deepcopy(WHOLE)
    for _ in range(draw(st.integers(1, 3))):
        place: Any = config
        while True:
            name = draw(st.sampled_from(sorted(place, key=str)) | st.text(max_size=6))
            inner = place.get(name)
            if not (isinstance(inner, dict) and inner and draw(st.booleans())):
                break
            place = inner
        place[name] = draw(values)
    return config


def make_or_refuse(data: Any) -> ServeConfig | None:
    with suppress(ConfigError):
        return make_config(data, "it")
    return None


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@given(changed_configs())
def test_a_strange_config_is_used_or_refused_and_can_be_shown(data: dict[str, Any]) -> None:
    config = make_or_refuse(data)
    if config is not None:
        describe_config(config)
        assert reload_config(config, select_reloadable(config)) == config


@given(st.dictionaries(st.sampled_from(sorted(WHOLE)) | st.text(max_size=6), values, max_size=3))
def test_a_strange_reload_is_made_or_refused(given_values: dict[str, Any]) -> None:
    config = make_config(WHOLE, "it")
    with suppress(ConfigError):
        reload_config(config, given_values)


@given(st.text(max_size=200) | values.map(yaml.safe_dump))
def test_a_strange_file_is_used_or_refused(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "serve.yaml"
        file.write_text(text, encoding="utf-8", errors="surrogatepass")
        with suppress(ConfigError):
            load(file, {}, {})
