"""hilum.objectives."""
