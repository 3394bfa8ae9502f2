"""What a fleet is, in plain Python: shapes, hardware, variants, cost, load, routing, configuration; no torch."""
