"""hilum.heads."""
