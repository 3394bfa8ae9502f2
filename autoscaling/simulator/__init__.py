"""A fleet in simulated time: production's router and scaling policies over modelled replicas; it serves nobody."""
