"""Static merges: several experts into one, weight by weight, by the published methods."""
