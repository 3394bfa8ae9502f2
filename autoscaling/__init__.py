"""How many replicas of which variant: planner and what it plans with; pure Python, no torch."""
