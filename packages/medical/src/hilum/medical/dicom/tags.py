"""Which elements of a header are read at all: no person's name, no date, no free text but the maker's."""

from __future__ import annotations

from functools import cache

from pydicom.datadict import dictionary_VR, tag_for_keyword

from hilum.medical.dicom.elements import sought

IDENTIFIERS = "SOPInstanceUID StudyInstanceUID SeriesInstanceUID AccessionNumber PatientID IssuerOfPatientID"
IMAGE = """SpecificCharacterSet SOPClassUID Modality ImageType Manufacturer BodyPartExamined ViewPosition
    ImageLaterality Laterality
    PixelSpacing ImagerPixelSpacing NominalScannedPixelSpacing Units SamplesPerPixel PhotometricInterpretation
    PlanarConfiguration NumberOfFrames Rows Columns BitsAllocated BitsStored HighBit PixelRepresentation
    PixelPaddingValue PixelPaddingRangeLimit RescaleIntercept RescaleSlope RescaleType
    DoseGridScaling DoseUnits
    WindowCenter WindowWidth WindowCenterWidthExplanation VOILUTFunction ModalityLUTSequence VOILUTSequence
    RealWorldValueMappingSequence PresentationLUTShape
    RedPaletteColorLookupTableDescriptor GreenPaletteColorLookupTableDescriptor BluePaletteColorLookupTableDescriptor
    RedPaletteColorLookupTableData GreenPaletteColorLookupTableData BluePaletteColorLookupTableData
    SegmentedRedPaletteColorLookupTableData SegmentedGreenPaletteColorLookupTableData
    SegmentedBluePaletteColorLookupTableData SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence
    ExtendedOffsetTable ExtendedOffsetTableLengths"""
FRAMES = """FrameTime FrameTimeVector GridFrameOffsetVector FrameIncrementPointer DimensionIndexSequence
    EnergyWindowVector DetectorVector PhaseVector RotationVector RRIntervalVector TimeSlotVector SliceVector
    AngularViewVector TimeSliceVector SliceLocationVector PageNumberVector
    EnergyWindowInformationSequence DetectorInformationSequence PhaseInformationSequence RotationInformationSequence
    NumberOfSlices NumberOfTimeSlices NumberOfRRIntervals NumberOfTimeSlots"""
GEOMETRY = """ImagePositionPatient ImageOrientationPatient FrameOfReferenceUID SliceThickness SpacingBetweenSlices
    SliceLocation GantryDetectorTilt InstanceNumber AcquisitionNumber AcquisitionUID TemporalPositionIdentifier
    TemporalPositionIndex NumberOfTemporalPositions TemporalResolution DiffusionBValue DiffusionGradientOrientation
    EchoNumbers EchoTime RepetitionTime InversionTime FlipAngle TriggerTime NominalInterval CardiacNumberOfImages
    StackID InStackPositionNumber ImageIndex PatientPosition AcquisitionTime ContentTime FrameReferenceTime
    ActualFrameDuration SegmentSequence SegmentationType MaximumFractionalValue TotalPixelMatrixRows
    TotalPixelMatrixColumns ImageOrientationSlide TomoLayerHeight PositionerPrimaryAngle PixelSpacingCalibrationType
    VolumetricProperties KVP ConvolutionKernel SequenceName NominalCardiacTriggerDelayTime
    NominalPercentageOfCardiacPhase"""
REFERENCES = "ReferencedSeriesSequence ReferencedFrameOfReferenceSequence SourceImageSequence DirectoryRecordSequence"

# Blocks and offsets of private elements that makers put numbers in (their conformance statements): Siemens b-value
# (0019,xx0C), GE b-value (0043,xx39), Philips b-value (2001,xx03), Philips scale intercept and slope (2005,xx0D and 0E).
_PRIVATE = {0x0019: (0x0C,), 0x0043: (0x39,), 0x2001: (0x03,), 0x2005: (0x0D, 0x0E)}

PIXELS = {0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData", 0x7FE00010: "PixelData"}
KEYWORDS = f"{IDENTIFIERS} {IMAGE} {FRAMES} {GEOMETRY} {REFERENCES}".split()


class _Tags(dict[str, int]):
    def __missing__(self, keyword: str) -> int:
        tag: int | None = tag_for_keyword(keyword)
        if tag is None:
            raise KeyError(keyword)
        self[keyword] = tag
        return tag


TAGS = _Tags({k: tag for k in KEYWORDS if (tag := tag_for_keyword(k)) is not None})
VRS: dict[int, str] = {tag: dictionary_VR(tag) for tag in TAGS.values()}


def private_tags() -> list[int]:
    """Creators and elements of the first sixteen blocks."""
    blocks = range(0x10, 0x20)
    creators = [group << 16 | block for group in _PRIVATE for block in blocks]
    return creators + [g << 16 | block << 8 | low for g, lows in _PRIVATE.items() for block in blocks for low in lows]


@cache
def wanted(order: str) -> dict[bytes, int]:
    """The elements that are read, up to the pixels; ``order`` is ``<`` or ``>``."""
    return sought(order, [*TAGS.values(), *private_tags()], stops=PIXELS)
