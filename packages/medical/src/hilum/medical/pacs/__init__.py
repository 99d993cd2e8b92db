"""Images from and to a PACS: DICOMweb and DIMSE, with every instance accounted for and read back."""
