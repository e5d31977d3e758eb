"""Prometheus and Grafana for a server: what is scraped, alerts with runbooks, dashboards."""
