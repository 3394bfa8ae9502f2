"""Boards and alerts of a fleet for Grafana, from the catalogue of metrics; it draws nothing and reads no fleet."""
