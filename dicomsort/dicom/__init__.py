"""DICOM data sets as bytes (PS3.5, PS3.10): their elements, file meta information and headers. It decodes no pixels."""
