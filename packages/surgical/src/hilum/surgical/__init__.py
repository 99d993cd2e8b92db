"""hilum for surgical imaging."""
