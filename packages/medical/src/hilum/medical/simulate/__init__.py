"""Simulated chest radiographs with labels, masks and reports, projected from one real CT: :func:`simulate_cohort`.

Nothing here is a patient, and every file says SIMULATED. The simulator exercises the road from archive to
evaluated model; it says nothing about how well a model reads real radiographs.
"""

from .cohort import Cohort, simulate_cohort
from .findings import FINDINGS

__all__ = ["FINDINGS", "Cohort", "simulate_cohort"]
