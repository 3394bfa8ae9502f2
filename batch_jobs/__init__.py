"""Offline jobs over datasets on Ray Data, with the same engine that serves online requests."""
