"""hilum for infrared imaging."""
