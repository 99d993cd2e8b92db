"""hilum.verbs."""
