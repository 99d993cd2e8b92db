"""hilum.adapters."""
