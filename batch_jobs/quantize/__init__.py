"""Offline quantisation: one unquantised checkpoint in, one in a format that others load out; it serves nothing."""
