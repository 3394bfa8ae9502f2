"""The HTTP surface and its replicas on Ray Serve."""
