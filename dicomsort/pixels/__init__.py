"""Files to the model's input: one rendering, for training and for sorting.

``render`` turns any PNG, JPEG or DICOM file, by its content, into (224, 224, 3) uint8 RGB, 0 black to 255 white.
``RENDERING_VERSION`` names what it does: a bundle holds the version that it was trained with, and a change of an output
increases it (``tests/test_pixels_golden.py``).

DICOM (sections of PS3.3 unless said otherwise):

1. One frame, the middle one by default, is found by its offset and decoded alone; of the others, and of unused
   elements, no byte is read beyond the file's first 64 KiB. A false Number of Frames (C.7.6.6) is corrected by the
   pixel data. Native data of a defined length, and codestreams whose first bytes name another codec, win over the
   transfer syntax; a codestream's own size wins over Rows and Columns. JPEG of 8 bits and JPEG 2000 are decoded at
   the least of 1, 1/2, 1/4, 1/8 of their size that leaves the longer side 448 pixels, unless values are no measure (a
   palette, padding that a window would not show black, a sign that the codec does not know) or a JPEG has no window.
2. Stored values (C.7.6.3): Bits Stored of Bits Allocated 1, 8, 16, 32 or 64, signed or not, High Bit anywhere; Float
   and Double Float Pixel Data. Native words that are noise in the byte order of the transfer syntax, and an image in
   the other one, are read in the other one.
3. Grey: Modality LUT (C.11.1) by table, else rescale (not the table of XA and RF whose values are stored as shown,
   C.8.7.1.1.2); VOI LUT (C.11.2) by the first table, else the first window, LINEAR, LINEAR_EXACT or SIGMOID. Enhanced
   files give both a frame, or all frames (C.7.6.16). With no window, or one that shows the image in less than an
   eighth of black to white, the 0.5th to 99.5th percentile. MONOCHROME1 is inverted. Pixel Padding (C.7.5.1.1.2) is
   left out of percentiles and is black.
4. Colour: PALETTE COLOR (C.7.6.3.1.5, segmented C.7.9.2; grey where the palette is missing), YBR_FULL, YBR_FULL_422,
   YBR_ICT and YBR_RCT (C.7.6.3.1.2) become RGB once. A JPEG is YCbCr or RGB by its component ids, JFIF and Adobe
   markers, and only where these are silent by its header. Samples deeper than 8 bits lose the lower ones.

PNG and JPEG: 8 bits as they are; 16-bit grey by the percentiles above; 16-bit colour loses the lower bits; palettes
resolved; alpha over black; CMYK to RGB; EXIF orientation applied; a JPEG is decoded at the least of 1, 1/2, 1/4, 1/8
of its size that leaves its longer side 448 pixels.

Then the image is scaled by a triangle filter over the whole of what each pixel covers, its longer side to 224 pixels
with its aspect, and lies centred on black. Grey is the same in all three channels.
"""

from __future__ import annotations

from dicomsort.pixels.limits import MAX_INFLATED, MAX_PIXELS, PixelsError
from dicomsort.pixels.render import as_array, picture, render, render_sized, show
from dicomsort.records import INPUT_SHAPE, RENDERING_VERSION

__all__ = [
    "INPUT_SHAPE",
    "MAX_INFLATED",
    "MAX_PIXELS",
    "RENDERING_VERSION",
    "PixelsError",
    "as_array",
    "picture",
    "render",
    "render_sized",
    "show",
]
