"""What a running fleet does under a load: sent over HTTP, summed up as the simulator sums up."""
