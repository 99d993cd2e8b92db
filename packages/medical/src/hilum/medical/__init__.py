"""hilum for medical imaging."""
