"""Tuning: the planner's settings that serve a trace best in the simulator; it changes no running fleet."""
