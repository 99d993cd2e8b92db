"""Volumes: index rows to grids in the patient's coordinates, and labels on those grids."""
