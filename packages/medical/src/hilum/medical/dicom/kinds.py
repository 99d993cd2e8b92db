"""Which objects are no images (PS3.4 B.5): they are counted as skipped, with their kind, never as failures."""

from __future__ import annotations

from functools import lru_cache

SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
DOSE = "1.2.840.10008.5.1.4.1.1.481.2"
DICOMDIR = "1.2.840.10008.1.3.10"
_STORAGE = "1.2.840.10008.5.1.4.1.1."
_NON_IMAGES = {
    f"{_STORAGE}88.59": "ko",
    f"{_STORAGE}88.": "sr",
    f"{_STORAGE}11.": "pr",
    f"{_STORAGE}104.1": "pdf",
    f"{_STORAGE}104.": "document",
    f"{_STORAGE}481.3": "rtstruct",
    f"{_STORAGE}481.5": "rtplan",
    f"{_STORAGE}481.8": "rtplan",
    f"{_STORAGE}481.4": "rt_record",
    f"{_STORAGE}481.6": "rt_record",
    f"{_STORAGE}481.7": "rt_record",
    f"{_STORAGE}481.9": "rt_record",
    f"{_STORAGE}481.10": "rt_intent",
    f"{_STORAGE}481.11": "rt_annotation",
    f"{_STORAGE}481.12": "rtplan",
    f"{_STORAGE}9.": "waveform",
    f"{_STORAGE}66.1": "registration",
    f"{_STORAGE}66.2": "fiducials",
    f"{_STORAGE}66.3": "registration",
    f"{_STORAGE}66.5": "surface",
    f"{_STORAGE}66.6": "tractography",
    f"{_STORAGE}66": "raw_data",
    f"{_STORAGE}67": "real_world_values",
    f"{_STORAGE}78.": "measurements",
    f"{_STORAGE}79.": "measurements",
    f"{_STORAGE}80.": "measurements",
    "1.2.840.10008.5.1.4.38.": "hanging_protocol",
    "1.2.840.10008.5.1.4.39.": "color_palette",
    "1.2.840.10008.5.1.4.43.": "implant",
    "1.2.840.10008.5.1.4.44.": "implant",
    "1.2.840.10008.5.1.4.45.": "implant",
    DICOMDIR: "dicomdir",
}
# Digital X-ray, mammography, intra-oral (PS3.3 C.8.11.3, C.8.11.7, C.8.11.8) and secondary capture of several frames
# (C.8.6.3) have a slope of 1 and an intercept of 0; a secondary capture and ultrasound have no quantity to scale.
_UNSCALED = ("1.1", "1.1.1", "1.2", "1.2.1", "1.3", "1.3.1", "3", "3.1", "6", "6.1", "7", "7.1", "7.2", "7.3", "7.4")
_FAMILIES = tuple((prefix, kind) for prefix, kind in _NON_IMAGES.items() if prefix.endswith("."))


def unscaled(sop_class: str) -> bool:
    """Whether stored values of a class are its values, so that a rescale that cannot be read takes nothing away."""
    return sop_class.startswith(_STORAGE) and sop_class[len(_STORAGE) :] in _UNSCALED


@lru_cache(256)
def non_image(sop_class: str) -> str | None:
    """The kind of an object without pixels, or None."""
    exact = _NON_IMAGES.get(sop_class)
    if exact is not None:
        return exact
    return next((kind for prefix, kind in _FAMILIES if sop_class.startswith(prefix)), None)
