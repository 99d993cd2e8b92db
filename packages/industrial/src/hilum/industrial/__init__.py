"""hilum for industrial imaging."""
