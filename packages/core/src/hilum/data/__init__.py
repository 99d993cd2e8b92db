"""hilum.data."""
