"""Measured step times of a fleet's variants: kept for planning, checked on steps that were held out, drawn."""
