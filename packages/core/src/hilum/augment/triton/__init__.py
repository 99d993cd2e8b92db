"""The Triton back-end for images: one kernel from stored pixels to network input (docs/augmentation.md).

Importing it imports triton, so import it where it is used.
"""

from hilum.augment.triton.backend import apply

__all__ = ["apply"]
