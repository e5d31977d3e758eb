"""The command `python -m deploy.monitoring`: write dashboards and the catalogue anew."""

from pathlib import Path

from deploy.monitoring.catalogue import make_catalogue
from deploy.monitoring.grafana_json import make_dashboard
from deploy.monitoring.panels import DASHBOARDS

HERE = Path(__file__).parent


def main() -> None:
    """Write a file for each dashboard, and the page of metrics."""
    pages = {f"dashboards/{one.name}.json": make_dashboard(one) for one in DASHBOARDS}
    for name, text in (pages | {"METRICS.md": make_catalogue()}).items():
        file = HERE / name
        file.write_text(text, encoding="utf-8")
        print(file)


if __name__ == "__main__":
    main()
