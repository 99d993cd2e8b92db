"""Words, codes and patterns that may stay in a de-identified header: anything else could be a name."""

from __future__ import annotations

import re
from functools import cache

from hilum.medical.dicom import terms

_MAKERS = """AGFA AGFA-GEVAERT GEVAERT CANON CARESTREAM DEL DRGEM ELEKTA ESAOTE FUJI FUJIFILM GE GENERAL ELECTRIC HITACHI
    HOLOGIC KODAK KONICA MINOLTA LUMISYS MEDICAL SYSTEMS HEALTHCARE HEALTHINEERS HOLDINGS NEUSOFT PHILIPS PICKER
    PLANMECA SAMSUNG SHIMADZU SIEMENS SWISSRAY SONOSITE TOSHIBA UNITED IMAGING VARIAN VIDAR ZIEHM ELSCINT BRUKER
    CORPORATION INC LTD GMBH CO ELECTRONICS"""
_ANATOMY = """ABDOMEN ANKLE AORTA ARM BRAIN BREAST CAROTID CERVICAL CHEST CLAVICLE COLON CORONARY ELBOW EXTREMITY FACE
    FEMUR FINGER FOOT FOREARM HAND HEAD HEART HIP HUMERUS KIDNEY KNEE LEG LIVER LUMBAR LUNG LUNGS NECK ORBIT PELVIS
    PROSTATE RIBS SACRUM SHOULDER SINUS SKULL SPINE STERNUM THORAX THORACIC THUMB TIBIA TOE WHOLE BODY WRIST UPPER LOWER"""
_TECHNIQUE = """2D 3D 4D AP PA LAT LATERAL FRONTAL OBLIQUE AXIAL AX CORONAL COR SAGITTAL SAG TRANSVERSE TRA BONE SOFT
    TISSUE STANDARD STD LUNG DETAIL SHARP SMOOTH EDGE WITH WITHOUT CONTRAST NATIVE ARTERIAL VENOUS PORTAL DELAYED PHASE
    LOCALIZER LOCALISER SCOUT TOPOGRAM SCANOGRAM T1 T2 T1W T2W PD PDW FLAIR DWI ADC DTI STIR SWI TOF MPRAGE EPI FSE TSE GRE SE
    TR TE TI B0 FAT SAT FS WATER IN OUT OPPOSED PRE POST DYNAMIC PERFUSION DIFFUSION ANGIO CTA MRA MIP MPR CT MR CR DX US
    XR NM PET PT MG RF XA THIN THICK SLICE SERIES SCAN IMAGE IMAGES VIEW VIEWS LEFT RIGHT BILATERAL BOTH ERECT SUPINE
    PRONE STANDING PORTABLE INSPIRATION EXPIRATION ROUTINE LOW DOSE HIGH RESOLUTION RECON RECONSTRUCTION ORIGINAL DERIVED
    MAGNITUDE PHASE REAL IMAGINARY AND OF THE TO FOR NO WO W MM CM KV MA NORMAL HARDER SOFTER WINDOW WINDOW1 WINDOW2 BRAIN"""
WORDS = frozenset(f"{_MAKERS} {_ANATOMY} {_TECHNIQUE}".split()) | terms.ALLOWED["BodyPartExamined"] | terms.EXPLANATIONS
LISTED_CODES = frozenset().union(*terms.ALLOWED.values(), terms.EXPLANATIONS)
PATTERNS = {  # short forms that have no list; too short or too regular for a name
    "SpecificCharacterSet": r"(ISO_IR \d{1,3}|ISO 2022 IR \d{1,3}|GB18030|GBK)?",
    "ContextIdentifier": r"\d{1,5}",
    "ConvolutionKernel": r"[A-Z]{1,2}\d{2}[a-z]?|\d",
    "TimezoneOffsetFromUTC": r"[+-]\d{4}",
    "CodingSchemeVersion": r"\d{8}|1\.\d|01",
}


def listed(text: str) -> bool:
    """Whether every word is listed; numbers of one or two digits count as words, up to two: three make a date, more a
    telephone number."""
    words = [w for w in re.split(r"[\s_/,;:+&()\-]+", text.strip(" \0").upper()) if w]
    numbers = [w for w in words if w not in WORDS and re.fullmatch(r"[0-9]{1,2}(MM|CM|KV)?", w)]
    return len(numbers) <= 2 and all(w in WORDS or w in numbers for w in words)


def patterned(keyword: str, text: str) -> bool:
    """Whether a value has the short form its attribute allows."""
    return keyword in PATTERNS and re.fullmatch(PATTERNS[keyword], text.strip(" \0")) is not None


@cache
def _concepts() -> dict[tuple[str, str], str]:
    from pydicom.sr._concepts_dict import concepts
    from pydicom.sr._snomed_dict import mapping

    known = {
        (scheme, value): about[0]
        for scheme, names in concepts.items()
        for values in names.values()
        for value, about in values.items()
    }
    retired = {("SRT", old): known[("SCT", new)] for old, new in mapping["SRT"].items() if ("SCT", new) in known}
    return known | retired


def meaning(scheme: str, value: str) -> str | None:
    """The standard's own meaning of a code (PS3.16), or None where the code is not the standard's."""
    return _concepts().get((scheme.strip(" \0"), value.strip(" \0")))
