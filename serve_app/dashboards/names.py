"""What the boards, their folder and their data source are called in Grafana; changing one makes another beside it."""

FOLDER_UID, FOLDER_TITLE = "quantfleet", "quantfleet"
SOURCE_UID, SOURCE_NAME = "quantfleet-prometheus", "quantfleet Prometheus"
