"""Dashboards as Grafana reads them."""

import json
from typing import Any

from deploy.monitoring.panels import Dashboard, Panel

_WIDTH, _HEIGHT, _COLUMNS = 8, 8, 3
_SCHEMA = 39  # of Grafana 10 and later, which read older ones too
_SOURCE = {"type": "prometheus", "uid": "${source}"}


def make_dashboard(dashboard: Dashboard) -> str:
    """Return the JSON of a dashboard, the same for the same panels."""
    panels = [_make_panel(number, panel) for number, panel in enumerate(dashboard.panels)]
    variable = {
        "name": "source",
        "label": "Prometheus",
        "type": "datasource",
        "query": "prometheus",
    }
    page = {
        "uid": f"tta-{dashboard.name}",
        "title": dashboard.title,
        "tags": ["tta-serve"],
        "schemaVersion": _SCHEMA,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [variable]},
        "links": [{"type": "dashboards", "tags": ["tta-serve"], "title": "tta-serve"}],
        "panels": panels,
    }
    return json.dumps(page, indent=1) + "\n"


def _make_panel(number: int, panel: Panel) -> dict[str, Any]:
    row, column = divmod(number, _COLUMNS)
    targets = [
        {
            "refId": chr(ord("A") + place),
            "datasource": _SOURCE,
            "expr": curve.expression,
            "legendFormat": curve.legend,
        }
        for place, curve in enumerate(panel.curves)
    ]
    return {
        "id": number + 1,
        "title": panel.title,
        "description": f"Shows something with {panel.needs}." if panel.needs else "",
        "type": "timeseries",
        "datasource": _SOURCE,
        "gridPos": {"x": column * _WIDTH, "y": row * _HEIGHT, "w": _WIDTH, "h": _HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}},
        "targets": targets,
    }
