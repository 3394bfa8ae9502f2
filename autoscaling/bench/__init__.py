"""How long the control plane takes: a route, a scaling decision."""
