"""Shared building blocks: pure, one home each, usable alone. Import the module that holds what is needed."""
