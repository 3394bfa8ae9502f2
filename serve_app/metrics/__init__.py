"""What a fleet tells Prometheus: the list of metrics, and who records which; Ray exports them."""
