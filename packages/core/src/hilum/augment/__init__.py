"""Fused augmentation: one policy, parameters drawn on the host, applied once on the device (docs/augmentation.md)."""
