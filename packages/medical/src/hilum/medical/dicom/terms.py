"""Codes that may leave a header. Anything can stand in a code string, names included, so only listed values pass."""

from __future__ import annotations

import re
from functools import lru_cache

_MODALITIES = """AR AS ASMT AU BDUS BI BMD CD CF CFM CP CR CS CT CTPROTOCOL DD DF DG DM DMS DOC DS DX EC ECG EEG EMG
    EOG EPS ES FA FID FS GM HC HD IO IOL IVOCT IVUS KER KO LEN LP LS M3D MA MG MR MS NM OAM OCT OP
    OPM OPR OPT OPTBSV OPTENF OPV OSS OT PA PLAN POS PR PT PX REG RESP RF RG RTDOSE RTIMAGE RTINTENT
    RTPLAN RTRAD RTRECORD RTSEGANN RTSTRUCT RWV SEG SM SMR SR SRF ST STAIN TEXTUREMAP TG US VA VF VL
    XA XAPROTOCOL XC"""  # PS3.3 C.7.3.1.1.1, retired ones included
_BODY_PARTS = """ABDOMEN ABDOMENPELVIS ADRENAL ANKLE AORTA ARM AXILLA BACK BILEDUCT BLADDER BRAIN BREAST BRONCHUS
    BUTTOCK CALCANEUS CALF CAROTID CEREBELLUM CERVIX CHEEK CHEST CHESTABDOMEN CHESTABDPELVIS
    CLAVICLE COCCYX COLON CORNEA CORONARYARTERY CSPINE CTSPINE DUODENUM EAR ELBOW ESOPHAGUS
    EXTREMITY EYE EYELID FACE FEMUR FINGER FOOT FOREARM GALLBLADDER GROIN HAND HEAD HEADNECK HEART
    HIP HUMERUS IAC ILEUM ILIUM INTERNALCAROTIDARTERY JAW JEJUNUM KIDNEY KNEE LARYNX LEG LIVER
    LSPINE LSSPINE LUMBARSPINE LUNG MAXILLA MEDIASTINUM MOUTH NASALBONE NECK NECKCHEST NOSE ORBIT
    OVARY PANCREAS PAROTID PATELLA PELVIS PENIS PHARYNX PROSTATE RADIUS RECTUM RIB SACRUM SCALP
    SCAPULA SCLERA SCROTUM SELLA SHOULDER SINUS SIJOINT SKULL SPINE SPLEEN SSPINE STERNUM STOMACH
    SUBMANDIBULAR TESTIS THIGH THORAX THUMB THYMUS THYROID TIBIA TIBIAFIBULA TMJ TOE TONGUE TRACHEA
    TSPINE TLSPINE ULNA URETER URETHRA UTERUS VAGINA VULVA WHOLEBODY WRIST
    ZYGOMA"""  # PS3.16 Annex L, without blanks, and common spellings
_VIEWS = """AP PA LL RL LAT LATERAL LLD RLD LLO RLO LAO RAO LPO RPO OBL OBLIQUE FRONTAL DECUB AXIAL SUPINE PRONE
    TANGENTIAL CC MLO ML LM LMO FB SIO XCC XCCL XCCM SKYLINE SUNRISE OPENMOUTH SWIMMERS"""
_UNITS = "HU OD MGML Z_EFF ED EDW HU_MOD PCT BQML CNTS PROPCPS GY CM2ML GML"  # "US" says: unspecified
# Explanations of windows are free text; these are the ones that vendors' viewers write.
_EXPLANATIONS = "NORMAL HARDER SOFTER WINDOW1 WINDOW2 BRAIN BONE LUNG SOFT_TISSUE MEDIASTINUM ABDOMEN STANDARD"

ALLOWED: dict[str, frozenset[str]] = {
    "Modality": frozenset(_MODALITIES.split()),
    "BodyPartExamined": frozenset(_BODY_PARTS.split()),
    "ViewPosition": frozenset(_VIEWS.split()),
    "ImageLaterality": frozenset("LRBU"),
    "Laterality": frozenset("LRBU"),
    "PresentationLUTShape": frozenset({"INVERSE", "IDENTITY"}),
    "RescaleType": frozenset(_UNITS.split()),
    "ModalityLUTType": frozenset(_UNITS.split()),
    "Units": frozenset(_UNITS.split()),
    "DoseUnits": frozenset({"GY", "RELATIVE"}),
}
EXPLANATIONS = frozenset(name.replace("_", " ") for name in _EXPLANATIONS.split())
# Units of real world values (UCUM): PS3.16 CIDs 82, 84 and 7181, the usual ones.
_UCUM = """1 % [hnsf'U] HU g/ml g/ml{SUVbw} g{SUVlbm}/ml cm2/ml{SUVbsa} Bq/ml Bq/mL kBq/ml MBq/ml mm2/s um2/s s ms us /s
    /min Hz ml/min/100g ml/100g mmol/l mg/ml mg/cm3 mm um cm mT T Pa kPa m/s cm/s deg rad Cel K {ratio} {counts}
    {no_units}"""
UCUM = frozenset(_UCUM.split())

# Makers by how their names begin, spelled as their scanners do; the short code is ours.
_VENDORS = """AGFA: AGFA | ALOKA: ALOKA | BARCO: BARCO | BRUKER: BRUKER | CANON: CANON | CARESTREAM: CARESTREAM |
    CARL ZEISS: ZEISS | ZEISS: ZEISS | DEL MEDICAL: DEL | DRTECH: DRTECH | EASTMAN KODAK: KODAK | KODAK: KODAK |
    ELEKTA: ELEKTA | ELSCINT: ELSCINT | EOS IMAGING: EOS | ESAOTE: ESAOTE | FUJI: FUJIFILM | GE: GE | GEMS: GE |
    GENERAL ELECTRIC: GE | GMM: GMM | HEIDELBERG: HEIDELBERG | HITACHI: HITACHI | HOLOGIC: HOLOGIC | LORAD: HOLOGIC |
    IMAGING DYNAMICS: IDC | IMS: IMS | KONICA: KONICA | LODOX: LODOX | MARCONI: PICKER | MEDISON: SAMSUNG |
    MINDRAY: MINDRAY | NEUSOFT: NEUSOFT | NIDEK: NIDEK | OLYMPUS: OLYMPUS | PHILIPS: PHILIPS | ADAC: PHILIPS |
    ATL: PHILIPS | PICKER: PICKER | PLANMECA: PLANMECA | PLANMED: PLANMED | RAYENCE: RAYENCE | SAMSUNG: SAMSUNG |
    SECTRA: SECTRA | SHIMADZU: SHIMADZU | SIEMENS: SIEMENS | ACUSON: SIEMENS | SIRONA: SIRONA | SONOSITE: SONOSITE |
    STORZ: STORZ | KARL STORZ: STORZ | STRYKER: STRYKER | SWISSRAY: SWISSRAY | TOPCON: TOPCON | TOSHIBA: TOSHIBA |
    UIH: UIH | UNITED IMAGING: UIH | VARIAN: VARIAN | VATECH: VATECH | VIEWORKS: VIEWORKS | XORAN: XORAN |
    ZIEHM: ZIEHM"""
VENDORS = {
    name.strip(): code.strip() for entry in _VENDORS.split("|") for name, code in [" ".join(entry.split()).split(":")]
}


@lru_cache(256)
def vendor_of(manufacturer: str) -> str | None:
    """The listed maker whose name opens a Manufacturer text, or None: what else stands there never leaves."""
    words = re.sub(r"[^A-Z ]", " ", manufacturer.upper()).split()
    for count in (2, 1):
        code = VENDORS.get(" ".join(words[:count])) if len(words) >= count else None
        if code is not None:
            return code
    return "FUJIFILM" if words and words[0].startswith("FUJI") else None
