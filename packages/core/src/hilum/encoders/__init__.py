"""hilum.encoders."""
