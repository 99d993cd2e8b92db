"""Where every random number and every identifier of the simulator comes from: the seed and a path of names.

A stream belongs to what it decides ("patient 7, habitus"), not to the order of calls, so that cohorts are equal
whatever the number of processes, and a patient is the same in a cohort of 10 and of 1,000. Numpy's Philox4x64-10
generator, keyed by a hash, is used rather than the sample-keyed Philox of training: nothing here is replayed by
sample id, and distributions beyond the uniform are needed. Equal numbers are promised for one numpy version.
"""

from __future__ import annotations

import hashlib
import uuid

import numpy as np

Name = int | str


def _digest(names: tuple[Name, ...]) -> bytes:
    return hashlib.sha256("/".join(map(str, names)).encode()).digest()


def generator(*names: Name) -> np.random.Generator:
    """The stream of ``names``, seed first."""
    return np.random.Generator(np.random.Philox(key=int.from_bytes(_digest(names)[:16], "little")))


def cohort_mark(seed: int) -> str:
    """Stands in every patient's identifier: cohorts of two seeds have no patient in common. Seed 0 has none, so that
    its published numbers, which hang on how identifiers are hashed, stay what they are."""
    return f"{seed}-" if seed else ""


def accession(seed: int, plain: str) -> str:
    """An accession number, 16 characters at most (PS3.5, SH), that no cohort of another seed has."""
    return (
        plain if not seed else f"SIM{int.from_bytes(_digest(('accession', seed, plain))[:8], 'little') % 10**13:013d}"
    )


def uid(*names: Name) -> str:
    """A DICOM UID under 2.25 (PS3.5 B.2: the decimal form of a UUID), the same for the same names."""
    return f"2.25.{uuid.UUID(bytes=_digest(('uid', *names))[:16], version=4).int}"
