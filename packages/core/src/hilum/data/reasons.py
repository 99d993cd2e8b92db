"""Every reason code that hilum writes about a file, a volume or a sample: what it means and what to do about it.

Codes are stable (FORMATS 5). A code may carry a detail after a colon (``bad_value:PixelSpacing``): the detail is a
keyword or a number, never a value of a header.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from hilum.core.errors import HilumError, nearest


@dataclass(frozen=True, slots=True)
class Reason:
    """``means`` completes "this file/volume/sample ..."; ``fix`` is what its keeper can do."""

    means: str
    fix: str


_NOTHING = "nothing needs to be done"
_FLAT = "use its images one by one; as a volume they have no place"
_SEND = "ask the archive to send the file again, and compare its size there with the one here"
_REPAIR = "correct the header in a copy, or leave the file out"

FILES: dict[str, Reason] = {
    # Quarantined: the file cannot be used as it is.
    "not_dicom": Reason("is of a kind that no installed reader knows", "if it should be an image, install the reader"),
    "empty_file": Reason("holds no bytes", _SEND),
    "special_file": Reason("is a link, a pipe, a socket or a device: never opened", "copy what a link points to"),
    "cycle": Reason("is a link that leads back to itself", "remove the link"),
    "unreadable": Reason("cannot be read from the disk", "check its permissions and the disk"),
    "truncated_pixels": Reason("holds fewer pixels than its header promises", _SEND),
    "missing_attribute": Reason("lacks an attribute without which its pixels mean nothing", _REPAIR),
    "inconsistent_attributes": Reason("contradicts itself, so no reading of it is certain", _REPAIR),
    "unsupported_transfer_syntax": Reason(
        "is compressed in a way that no installed codec reads", "install the codec that its message names"
    ),
    "unsupported_photometric": Reason("has a colour model that is not read", "convert it to RGB or MONOCHROME2"),
    "unsupported_pixel_type": Reason("has values of a type that is not read", "convert it to integers or float32"),
    "codec_error": Reason("has compressed data that the codec cannot decode", _SEND),
    "parse_error": Reason("has a structure that cannot be read", _SEND),
    "resource_limit": Reason(
        "would need more memory, time or nesting than is allowed",
        "if it is genuine, split it or raise the limits; if not, delete it",
    ),
    "unsafe_archive": Reason(
        "is an archive whose members would be written outside of it, or unpack to far more than they hold",
        "unpack it with care elsewhere, look at it, and index the folder",
    ),
    "unsupported_container": Reason("is an archive that is not opened", "unpack it and index the folder"),
    "unsafe_reference": Reason("points outside the archive's root", "put what it points to below the root"),
    "missing_reference": Reason("points to files that are not there", "copy the missing files, or delete this one"),
    "unsafe_preamble": Reason("starts like a program as well as an image", "have it checked; rewrite its preamble"),
    "vanished": Reason("was there at an earlier run and is gone", "nothing, if it was removed on purpose"),
    "excluded": Reason("was left out by --exclude", _NOTHING),
    "non_image": Reason("is a well-formed object without pixels", _NOTHING),
    # Noted: the file is used, and this is what is odd about it.
    "no_preamble": Reason("lacks the 128-byte preamble; read as a bare data set", _NOTHING),
    "guessed_transfer_syntax": Reason("does not name its transfer syntax; told from its bytes", _NOTHING),
    "assumed": Reason("lacks an attribute whose only sensible value was taken", _NOTHING),
    "bad_value": Reason("has a value that cannot be read; treated as absent", "check it in the original"),
    "unlisted": Reason("has a code that is no listed one; dropped, since anything could stand there", _NOTHING),
    "frames_from_data": Reason("does not say how many frames it has; counted in the data", _NOTHING),
    "excess_pixel_bytes": Reason("holds more bytes than its pixels need; the rest is ignored", _NOTHING),
    "missing_delimiter": Reason("ends without the last delimiter; its pixels are complete", _NOTHING),
    "codestream_precision": Reason("is compressed with another precision than its header says", _NOTHING),
    "pixel_representation_mismatch": Reason("is compressed with another sign than its header says", _NOTHING),
    "photometric_mismatch": Reason("is compressed in another colour model than its header says", _NOTHING),
    "polarity_contradiction": Reason(
        "says both that it displays inverted and that it does not; PresentationLUTShape decides",
        "look at its thumbnail: white bone is right for a radiograph",
    ),
    "incomplete_rescale": Reason("has half of a rescale; the missing half is 1 or 0", "check it in the original"),
    "bad_window": Reason("has a window that cannot be used; the next source was taken", _NOTHING),
    "unknown_voi_function": Reason("names a VOI function that does not exist; read as LINEAR", _NOTHING),
    "constant_values": Reason("shows one value everywhere", "leave it out if it should show something"),
    "non_finite": Reason("holds values that are no numbers; left out of statistics", "check how it was made"),
    "exif_orientation": Reason("asks viewers to turn it; its pixels are read as stored", "rewrite it upright"),
    "alpha_ignored": Reason("has a transparency channel; ignored", "flatten it if the channel means something"),
    "excess_frames": Reason("holds more frames than it says; the stated ones are read", "check it in the original"),
    "frames_out_of_order": Reason("has frames that go back and forth in depth; read as stored", _NOTHING),
    "window_differs_by_frame": Reason("has another window for each frame; that of the first is the default", _NOTHING),
    "geometry_of_too_many_frames": Reason("has too many frames for their places to be recorded", _NOTHING),
    "incomplete": Reason("has an element without the parts that give it a meaning; not used", _NOTHING),
    "converted": Reason("gives lengths in another unit; converted to mm", _NOTHING),
    "uid_conflict": Reason(
        "shares its SOPInstanceUID with other pixels or another patient; out of volumes and splits",
        "find out which of them is right and remove the others",
    ),
    "same_pixels_other_patient": Reason(
        "has exactly the pixels of a file of another patient",
        "find out whose image it is: one of the two is filed wrongly, or both are one patient",
    ),
    "issuer_missing": Reason(
        "has a patient identifier that several issuers use, and does not say whose; its patient is not known",
        "add the issuer in the labels table, or name it in private/merges.csv",
    ),
}
"""Codes of a file: ``reason`` (skipped or quarantined) and ``problems`` (indexed all the same)."""

VOLUMES: dict[str, Reason] = {
    # These make a volume unusable; some are resolved by an explicit option, which is recorded.
    "gap": Reason("lacks slices inside its stack", "ask the archive for them, or index with --volumes allow_gaps"),
    "lost_slices": Reason(
        "may lack slices at its ends: files of its series are quarantined, have no place, or its sisters have more",
        "see which ones are missing, or index with --volumes allow_gaps",
    ),
    "irregular_spacing": Reason(
        "has slices at changing distances", "index with --volumes resample, which interpolates along the normal"
    ),
    "four_d": Reason(
        "holds several volumes in one series (time, b-value, echo ...)",
        "index with --volumes split_4d to take it apart",
    ),
    "affine_from_pixdim": Reason(
        "states voxel sizes and no orientation",
        "index with --volumes pixdim_affine if its axes are known to be R, A, S",
    ),
    "irregular_position": Reason("has slices that leave the line of the others", "check the table's movement"),
    "duplicate_position": Reason(
        "has several slices at one place and nothing that tells them apart", "find out which of them belong together"
    ),
    "missing_geometry": Reason("has several slices and does not say where they are", _FLAT),
    "mixed_patients": Reason("has one series UID under several patients or studies", "find out whose it is"),
    "mosaic": Reason("is slices laid side by side in one image, whose place is none of theirs", _FLAT),
    "colour": Reason("is of colour: no values of a grid", _FLAT),
    # These are told of a volume that is used.
    "single_slice": Reason("is one slice", _NOTHING),
    "localizer": Reason("is a localiser, kept apart from the slices that it plans", _NOTHING),
    "gantry_tilt": Reason("was taken with a tilted gantry; the shear stands in its affine", _NOTHING),
    "instance_order": Reason("is numbered in another order than it lies; ordered by position", _NOTHING),
    "mixed_size": Reason("comes of a series with slices of several sizes; taken apart", _NOTHING),
    "mixed_spacing": Reason("comes of a series with several pixel spacings; taken apart", _NOTHING),
    "mixed_frame_of_reference": Reason(
        "comes of a series with several frames of reference, whose positions have nothing in common; taken apart",
        "find out whether its slices were given other frames of reference by mistake",
    ),
    "mixed_orientation": Reason("comes of a series with several orientations; taken apart", _NOTHING),
    "affine_disagreement": Reason(
        "has two placements that differ (sform and qform); the sform was taken", "find out which one its maker meant"
    ),
    # What an option did.
    "allow_gaps": Reason("has missing planes that are marked invalid (--volumes allow_gaps)", _NOTHING),
    "resample": Reason("was interpolated to a regular grid (--volumes resample)", _NOTHING),
    "split_4d": Reason("is one of several of its series (--volumes split_4d)", _NOTHING),
}
"""Codes of a volume (``problems`` in series.parquet)."""

SAMPLES: dict[str, Reason] = {
    "multi_frame": Reason("has several frames where a 2-D view takes one", "restrict `where` to frames = 1"),
    "no_such_window": Reason("does not have the window that the recipe's views ask for", "voi: auto, or another one"),
    "missing_reader": Reason("was indexed by a reader that is not installed here", "install its plugin"),
    "no_valid_pixels": Reason("is padding everywhere", "leave it out"),
    "worker_died": Reason("ended the process that read it, twice", "look at the file: hilum doctor STUDY --why PATH"),
    "timeout": Reason("took longer than the limit", "look at the file: hilum doctor STUDY --why PATH"),
    "contract": Reason("came from a source that does not keep its contract", "correct the source"),
    "outside_selection": Reason("is not of the kind the model learned from; its scores mean nothing", _NOTHING),
}
"""Codes of a sample that was asked for (``bad_samples.parquet``, the table of ``hilum predict``)."""


COPIES: dict[str, Reason] = {
    # hilum deid: why no copy was written.
    "burned_in_text": Reason("seems to have text in its pixels", "look at it; then clear the region, or release it"),
    "identifier_left": Reason(
        "still held an identifier of its original when it was checked", "report it, with the tag"
    ),
    "uncleared_bits": Reason("may hide an overlay in unused bits that its compression cannot clear", "leave it out"),
    "uncleared_text": Reason("has pixels of a kind in which text cannot be painted over", "leave it out"),
    # hilum pull and push: what became of an instance.
    "present": Reason("is there already, and equal", _NOTHING),
    "sent_before": Reason("was sent in this run under the same UID, and is equal", _NOTHING),
    "held_differently": Reason("is there already under its UID, and differs", "find out which one is right"),
    "stored_differently": Reason("was read back after it was sent, and differs", "ask the archive what it coerces"),
    "not_stored": Reason("was accepted and could not be found afterwards", "ask the archive; send it again"),
    "not_read_back": Reason("was stored and could not be read back for comparison", "try again: hilum push goes on"),
    "not_sent": Reason("was asked for and did not come", "try again: hilum pull goes on where it ended"),
    "not_found": Reason("is not there", "check the query; it may have been moved"),
    "wrong_instance": Reason(
        "is another instance, or of another patient or accession, than was asked for", "ask who runs the archive"
    ),
    "invalid_uid": Reason("has a UID that is none", _REPAIR),
    "too_large": Reason("is larger than the limit", "raise the limit if it is genuine"),
    "truncated_answer": Reason("ended before it was complete", "try again"),
    "unexpected_answer": Reason("came in a form that is no answer to the request", "check the address"),
    "unreachable": Reason("could not be asked for: nobody answers", "check the address and the network"),
    "refused": Reason("was refused by the archive", "ask its keeper for the rights"),
    "busy": Reason("was refused because the archive is busy", "try again later"),
    "out_of_resources": Reason("was refused for want of space", "ask the archive's keeper"),
    "sop_class_refused": Reason("is of a kind that the archive does not take", "ask its keeper to allow the SOP class"),
    "syntax_refused": Reason("is compressed in a way that the archive does not take", "ask its keeper to allow it"),
    "pdu_too_long": Reason("came in a message longer than was agreed; the connection was closed", "ask the archive"),
    "too_many_answers": Reason("is one of more answers than were allowed for", "narrow the query"),
    "http": Reason("was answered with an HTTP error", "look the number up, and ask the archive's keeper"),
}
"""Codes of a copy that was to be made: ``hilum deid``, ``hilum pull``, ``hilum push``."""

_ALL = (FILES, VOLUMES, SAMPLES, COPIES)


def reason_of(code: str) -> Reason:
    """What a code means, its detail cut off; HilumError where hilum knows no such code."""
    found, name = _found(code), code.partition(":")[0]
    if found is None:
        every = [known for table in _ALL for known in table]
        fix = nearest(name, every) or "the codes stand in docs/doctor.md"
        raise HilumError(f"there is no reason code {name!r}", fix=fix)
    return found


def _found(code: str) -> Reason | None:
    name = re.sub(r"^http_\d+$", "http", code.partition(":")[0])
    return next((known[name] for known in _ALL if name in known), None)


def meaning(code: str) -> Reason:
    """As :func:`reason_of`; of a code that a newer or foreign plugin wrote, that it is not explained here."""
    return _found(code) or Reason("carries a code that this version does not explain", "update hilum and its plugins")
