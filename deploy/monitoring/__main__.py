"""The command `python -m deploy.monitoring`: write the dashboards' files anew."""

from pathlib import Path

from deploy.monitoring.grafana_json import make_dashboard
from deploy.monitoring.panels import DASHBOARDS

FOLDER = Path(__file__).parent / "dashboards"


def main() -> None:
    """Write a file for each dashboard."""
    for dashboard in DASHBOARDS:
        file = FOLDER / f"{dashboard.name}.json"
        file.write_text(make_dashboard(dashboard), encoding="utf-8")
        print(file)


if __name__ == "__main__":
    main()
