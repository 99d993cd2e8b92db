"""What stands in the place of identifiers: keyed digests, the same wherever one key is used, and shifted dates."""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass

from pydicom.uid import UID_dictionary

from hilum.data.identity import IdentityKey, usable

MOST_DAYS = 3650  # dates go back by 1 to this many whole days
OLDEST = 89  # years: ages above are one class (HIPAA safe harbour)
IMPLEMENTATION = "2.25.184562210573942165801776431590275311477"
DUMMIES = {
    "DA": "19000101",
    "TM": "000000",
    "DT": "19000101000000",
    "AS": "000Y",
    "DS": "0",
    "IS": "0",
    "UR": "about:blank",
}
_REGISTERED = re.compile(r"1\.2\.840\.10008\.5\.1\.4(\.[1-9][0-9]{0,2}){2,6}")
_DATE = re.compile(r"([0-9]{4})([.]?)([0-9]{2})\2([0-9]{2})((?:[0-9]{2}){0,3}(?:\.[0-9]{1,6})?(?:[+-][0-9]{4})?)")


def registered(uid: str) -> bool:
    """Whether a UID is the standard's own (SOP class, transfer syntax, coding scheme ...): it names no instance.

    Those of later editions are told by their short parts; some devices make UIDs of dates and numbers under this root.
    """
    return uid in UID_dictionary or _REGISTERED.fullmatch(uid) is not None


@dataclass(frozen=True)
class Pseudonyms:
    """Of one patient. ``patient`` is the group digest of :mod:`hilum.data.identity`, of the study where no usable
    PatientID says who it is: ``known`` is False then, and the copy must not name a patient either."""

    key: IdentityKey
    patient: str
    known: bool = True

    @classmethod
    def of(cls, key: IdentityKey, issuer: str | None, patient_id: str | None, study: str | None) -> Pseudonyms:
        if patient_id is not None and usable(patient_id):
            return cls(key, key.group(issuer, patient_id))
        return cls(key, key.digest("unknown-patient", study or ""), known=False)

    @property
    def name(self) -> str:
        """Stands for PatientID and PatientName."""
        return self.patient[:16].upper()

    @property
    def days(self) -> int:
        """What is added to every date of the patient: negative, whole days."""
        return -1 - int(self.key.digest("date-shift", self.patient), 16) % MOST_DAYS

    def uid(self, old: str) -> str:
        """A UID under 2.25 (PS3.5 B.2) that only the key's holder can compute; registered UIDs stay."""
        old = old.strip(" \0")
        if not old or registered(old):
            return old
        return f"2.25.{int(self.key.digest('uid', old), 16)}"

    def shifted(self, text: str) -> str | None:
        """A DA or DT moved by :attr:`days`, time of day and zone kept; None where it is no full date."""
        found = _DATE.fullmatch(text.strip(" \0"))
        if found is None:
            return None
        try:
            date = datetime.date(int(found[1]), int(found[3]), int(found[4])) + datetime.timedelta(self.days)
        except (ValueError, OverflowError):
            return None
        return f"{date:%Y%m%d}{found[5]}" if date.year >= 1000 else None


def is_time(vr: str, text: str) -> bool:
    """Whether a DA, DT or TM is one, and no other text: a date may lack its end, or have the dots of ACR-NEMA."""
    plain = text.strip(" \0")
    if vr == "TM":
        return re.fullmatch(r"[0-9]{2}(:?[0-9]{2}){0,2}(\.[0-9]{1,6})?", plain) is not None
    return _DATE.fullmatch(plain) is not None or (
        vr == "DT" and re.fullmatch(r"[0-9]{4}([0-9]{2})?", plain) is not None
    )


def capped_age(text: str) -> str | None:
    """An AS of more than 89 years as 090Y; None where it is no age (PS3.5 6.2)."""
    found = re.fullmatch(r"([0-9]{1,4})([DWMY])", text.strip(" \0").upper())
    if found is None:
        return None
    number, unit = int(found[1]), found[2]
    years = number / {"D": 365.25, "W": 52.18, "M": 12, "Y": 1}[unit]
    if years >= OLDEST + 1:
        return f"{OLDEST + 1:03d}Y"
    return f"{number:03d}{unit}" if number < 1000 else f"{int(years):03d}Y"
