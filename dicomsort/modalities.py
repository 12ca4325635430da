"""The category of an object by its SOP Class or Modality: tables of PS3.4 Annex B.5 and PS3.3 C.7.3.1.1.1.

A category is a plain ``str``: one of the five constants below, or ``OTHER:<KIND>`` (``OTHER:US``, ``OTHER:PT``), where
KIND names the folder below ``OTHER/``. ``kind_of`` names that folder for the objects that follow their study, too.

Choices where the standard leaves one: RT images follow their study (made to place a beam, not to diagnose);
X-ray 3D and tomosynthesis are XRAY; bone densitometry (BMD) is a measurement, hence OTHER; MR spectroscopy is MRI (the
scanner says so, there is no image to doubt it by); raw data and hard copies say nothing, as secondary captures do.
"""

from __future__ import annotations

from typing import Final

CT: Final = "CT"
MRI: Final = "MRI"
XRAY: Final = "XRAY"
ASK: Final = "ASK"  # says nothing about the modality: other evidence decides
FOLLOWS: Final = "FOLLOWS"  # no image of its own modality: goes where its series or study goes
OTHER_PREFIX: Final = "OTHER:"

# PS3.4 Table B.5-1, GG.3-1 (non-patient objects) and the classes retired since; trials and DICOS/DICONDE included.
_SOP_CLASSES: Final[dict[str, str]] = {
    "1.2.840.10008.5.1.1.27": "FOLLOWS:PR",  # Stored Print, retired
    "1.2.840.10008.5.1.1.29": "ASK",  # Hardcopy Grayscale Image, retired
    "1.2.840.10008.5.1.1.30": "ASK",  # Hardcopy Color Image, retired
    "1.2.840.10008.5.1.4.1.1.1": "XRAY",  # Computed Radiography Image
    "1.2.840.10008.5.1.4.1.1.1.1": "XRAY",  # Digital X-Ray - For Presentation
    "1.2.840.10008.5.1.4.1.1.1.1.1": "XRAY",  # Digital X-Ray - For Processing
    "1.2.840.10008.5.1.4.1.1.1.2": "XRAY",  # Digital Mammography X-Ray - For Presentation
    "1.2.840.10008.5.1.4.1.1.1.2.1": "XRAY",  # Digital Mammography X-Ray - For Processing
    "1.2.840.10008.5.1.4.1.1.1.3": "XRAY",  # Digital Intra-Oral X-Ray - For Presentation
    "1.2.840.10008.5.1.4.1.1.1.3.1": "XRAY",  # Digital Intra-Oral X-Ray - For Processing
    "1.2.840.10008.5.1.4.1.1.2": "CT",  # CT Image
    "1.2.840.10008.5.1.4.1.1.2.1": "CT",  # Enhanced CT Image
    "1.2.840.10008.5.1.4.1.1.2.2": "CT",  # Legacy Converted Enhanced CT Image
    "1.2.840.10008.5.1.4.1.1.3": "OTHER:US",  # Ultrasound Multi-frame Image, retired
    "1.2.840.10008.5.1.4.1.1.3.1": "OTHER:US",  # Ultrasound Multi-frame Image
    "1.2.840.10008.5.1.4.1.1.4": "MRI",  # MR Image
    "1.2.840.10008.5.1.4.1.1.4.1": "MRI",  # Enhanced MR Image
    "1.2.840.10008.5.1.4.1.1.4.2": "MRI",  # MR Spectroscopy
    "1.2.840.10008.5.1.4.1.1.4.3": "MRI",  # Enhanced MR Color Image
    "1.2.840.10008.5.1.4.1.1.4.4": "MRI",  # Legacy Converted Enhanced MR Image
    "1.2.840.10008.5.1.4.1.1.5": "OTHER:NM",  # Nuclear Medicine Image, retired
    "1.2.840.10008.5.1.4.1.1.6": "OTHER:US",  # Ultrasound Image, retired
    "1.2.840.10008.5.1.4.1.1.6.1": "OTHER:US",  # Ultrasound Image
    "1.2.840.10008.5.1.4.1.1.6.2": "OTHER:US",  # Enhanced US Volume
    "1.2.840.10008.5.1.4.1.1.6.3": "OTHER:PA",  # Photoacoustic Image
    "1.2.840.10008.5.1.4.1.1.7": "ASK",  # Secondary Capture Image
    "1.2.840.10008.5.1.4.1.1.7.1": "ASK",  # Multi-frame Single Bit Secondary Capture Image
    "1.2.840.10008.5.1.4.1.1.7.2": "ASK",  # Multi-frame Grayscale Byte Secondary Capture Image
    "1.2.840.10008.5.1.4.1.1.7.3": "ASK",  # Multi-frame Grayscale Word Secondary Capture Image
    "1.2.840.10008.5.1.4.1.1.7.4": "ASK",  # Multi-frame True Color Secondary Capture Image
    "1.2.840.10008.5.1.4.1.1.8": "FOLLOWS:PR",  # Standalone Overlay, retired
    "1.2.840.10008.5.1.4.1.1.9": "FOLLOWS:PR",  # Standalone Curve, retired
    "1.2.840.10008.5.1.4.1.1.9.1": "OTHER:ECG",  # Waveform - Trial
    "1.2.840.10008.5.1.4.1.1.9.1.1": "OTHER:ECG",  # 12-lead ECG Waveform
    "1.2.840.10008.5.1.4.1.1.9.1.2": "OTHER:ECG",  # General ECG Waveform
    "1.2.840.10008.5.1.4.1.1.9.1.3": "OTHER:ECG",  # Ambulatory ECG Waveform
    "1.2.840.10008.5.1.4.1.1.9.1.4": "OTHER:ECG",  # General 32-bit ECG Waveform
    "1.2.840.10008.5.1.4.1.1.9.2.1": "OTHER:HD",  # Hemodynamic Waveform
    "1.2.840.10008.5.1.4.1.1.9.3.1": "OTHER:EPS",  # Cardiac Electrophysiology Waveform
    "1.2.840.10008.5.1.4.1.1.9.4.1": "OTHER:AU",  # Basic Voice Audio Waveform
    "1.2.840.10008.5.1.4.1.1.9.4.2": "OTHER:AU",  # General Audio Waveform
    "1.2.840.10008.5.1.4.1.1.9.5.1": "OTHER:HD",  # Arterial Pulse Waveform
    "1.2.840.10008.5.1.4.1.1.9.6.1": "OTHER:RESP",  # Respiratory Waveform
    "1.2.840.10008.5.1.4.1.1.9.6.2": "OTHER:RESP",  # Multi-channel Respiratory Waveform
    "1.2.840.10008.5.1.4.1.1.9.7.1": "OTHER:EEG",  # Routine Scalp Electroencephalogram Waveform
    "1.2.840.10008.5.1.4.1.1.9.7.2": "OTHER:EMG",  # Electromyogram Waveform
    "1.2.840.10008.5.1.4.1.1.9.7.3": "OTHER:EOG",  # Electrooculogram Waveform
    "1.2.840.10008.5.1.4.1.1.9.7.4": "OTHER:EEG",  # Sleep Electroencephalogram Waveform
    "1.2.840.10008.5.1.4.1.1.9.8.1": "OTHER:POS",  # Body Position Waveform
    "1.2.840.10008.5.1.4.1.1.9.100.1": "FOLLOWS:PR",  # Waveform Presentation State
    "1.2.840.10008.5.1.4.1.1.9.100.2": "FOLLOWS:PR",  # Waveform Acquisition Presentation State
    "1.2.840.10008.5.1.4.1.1.10": "FOLLOWS:PR",  # Standalone Modality LUT, retired
    "1.2.840.10008.5.1.4.1.1.11": "FOLLOWS:PR",  # Standalone VOI LUT, retired
    "1.2.840.10008.5.1.4.1.1.11.1": "FOLLOWS:PR",  # Grayscale Softcopy Presentation State
    "1.2.840.10008.5.1.4.1.1.11.2": "FOLLOWS:PR",  # Color Softcopy Presentation State
    "1.2.840.10008.5.1.4.1.1.11.3": "FOLLOWS:PR",  # Pseudo-Color Softcopy Presentation State
    "1.2.840.10008.5.1.4.1.1.11.4": "FOLLOWS:PR",  # Blending Softcopy Presentation State
    "1.2.840.10008.5.1.4.1.1.11.5": "FOLLOWS:PR",  # XA/XRF Grayscale Softcopy Presentation State
    "1.2.840.10008.5.1.4.1.1.11.6": "FOLLOWS:PR",  # Grayscale Planar MPR Volumetric Presentation State
    "1.2.840.10008.5.1.4.1.1.11.7": "FOLLOWS:PR",  # Compositing Planar MPR Volumetric Presentation State
    "1.2.840.10008.5.1.4.1.1.11.8": "FOLLOWS:PR",  # Advanced Blending Presentation State
    "1.2.840.10008.5.1.4.1.1.11.9": "FOLLOWS:PR",  # Volume Rendering Volumetric Presentation State
    "1.2.840.10008.5.1.4.1.1.11.10": "FOLLOWS:PR",  # Segmented Volume Rendering Volumetric Presentation State
    "1.2.840.10008.5.1.4.1.1.11.11": "FOLLOWS:PR",  # Multiple Volume Rendering Volumetric Presentation State
    "1.2.840.10008.5.1.4.1.1.11.12": "FOLLOWS:PR",  # Variable Modality LUT Softcopy Presentation State
    "1.2.840.10008.5.1.4.1.1.12.1": "XRAY",  # X-Ray Angiographic Image
    "1.2.840.10008.5.1.4.1.1.12.1.1": "XRAY",  # Enhanced XA Image
    "1.2.840.10008.5.1.4.1.1.12.2": "XRAY",  # X-Ray Radiofluoroscopic Image
    "1.2.840.10008.5.1.4.1.1.12.2.1": "XRAY",  # Enhanced XRF Image
    "1.2.840.10008.5.1.4.1.1.12.3": "XRAY",  # X-Ray Angiographic Bi-Plane Image, retired
    "1.2.840.10008.5.1.4.1.1.13.1.1": "XRAY",  # X-Ray 3D Angiographic Image
    "1.2.840.10008.5.1.4.1.1.13.1.2": "XRAY",  # X-Ray 3D Craniofacial Image
    "1.2.840.10008.5.1.4.1.1.13.1.3": "XRAY",  # Breast Tomosynthesis Image
    "1.2.840.10008.5.1.4.1.1.13.1.4": "XRAY",  # Breast Projection X-Ray - For Presentation
    "1.2.840.10008.5.1.4.1.1.13.1.5": "XRAY",  # Breast Projection X-Ray - For Processing
    "1.2.840.10008.5.1.4.1.1.14.1": "OTHER:IVOCT",  # Intravascular Optical Coherence Tomography - For Presentation
    "1.2.840.10008.5.1.4.1.1.14.2": "OTHER:IVOCT",  # Intravascular Optical Coherence Tomography - For Processing
    "1.2.840.10008.5.1.4.1.1.20": "OTHER:NM",  # Nuclear Medicine Image
    "1.2.840.10008.5.1.4.1.1.30": "FOLLOWS:MAP",  # Parametric Map
    "1.2.840.10008.5.1.4.1.1.66": "ASK",  # Raw Data
    "1.2.840.10008.5.1.4.1.1.66.1": "FOLLOWS:REG",  # Spatial Registration
    "1.2.840.10008.5.1.4.1.1.66.2": "FOLLOWS:FID",  # Spatial Fiducials
    "1.2.840.10008.5.1.4.1.1.66.3": "FOLLOWS:REG",  # Deformable Spatial Registration
    "1.2.840.10008.5.1.4.1.1.66.4": "FOLLOWS:SEG",  # Segmentation
    "1.2.840.10008.5.1.4.1.1.66.5": "FOLLOWS:SEG",  # Surface Segmentation
    "1.2.840.10008.5.1.4.1.1.66.6": "FOLLOWS:TRACT",  # Tractography Results
    "1.2.840.10008.5.1.4.1.1.66.7": "FOLLOWS:SEG",  # Label Map Segmentation
    "1.2.840.10008.5.1.4.1.1.66.8": "FOLLOWS:SEG",  # Height Map Segmentation
    "1.2.840.10008.5.1.4.1.1.67": "FOLLOWS:RWV",  # Real World Value Mapping
    "1.2.840.10008.5.1.4.1.1.68.1": "OTHER:LS",  # Surface Scan Mesh
    "1.2.840.10008.5.1.4.1.1.68.2": "OTHER:LS",  # Surface Scan Point Cloud
    "1.2.840.10008.5.1.4.1.1.77.1": "OTHER:XC",  # VL - Trial
    "1.2.840.10008.5.1.4.1.1.77.1.1": "OTHER:ES",  # VL Endoscopic Image
    "1.2.840.10008.5.1.4.1.1.77.1.1.1": "OTHER:ES",  # Video Endoscopic Image
    "1.2.840.10008.5.1.4.1.1.77.1.2": "OTHER:GM",  # VL Microscopic Image
    "1.2.840.10008.5.1.4.1.1.77.1.2.1": "OTHER:GM",  # Video Microscopic Image
    "1.2.840.10008.5.1.4.1.1.77.1.3": "OTHER:SM",  # VL Slide-Coordinates Microscopic Image
    "1.2.840.10008.5.1.4.1.1.77.1.4": "OTHER:XC",  # VL Photographic Image
    "1.2.840.10008.5.1.4.1.1.77.1.4.1": "OTHER:XC",  # Video Photographic Image
    "1.2.840.10008.5.1.4.1.1.77.1.5.1": "OTHER:OP",  # Ophthalmic Photography 8 Bit Image
    "1.2.840.10008.5.1.4.1.1.77.1.5.2": "OTHER:OP",  # Ophthalmic Photography 16 Bit Image
    "1.2.840.10008.5.1.4.1.1.77.1.5.3": "FOLLOWS:SMR",  # Stereometric Relationship
    "1.2.840.10008.5.1.4.1.1.77.1.5.4": "OTHER:OPT",  # Ophthalmic Tomography Image
    "1.2.840.10008.5.1.4.1.1.77.1.5.5": "OTHER:OP",  # Wide Field Ophthalmic Photography Stereographic Projection Image
    "1.2.840.10008.5.1.4.1.1.77.1.5.6": "OTHER:OP",  # Wide Field Ophthalmic Photography 3D Coordinates Image
    "1.2.840.10008.5.1.4.1.1.77.1.5.7": "OTHER:OPTENF",  # Ophthalmic OCT En Face
    "1.2.840.10008.5.1.4.1.1.77.1.5.8": "OTHER:OPTBSV",  # Ophthalmic OCT B-scan Volume Analysis
    "1.2.840.10008.5.1.4.1.1.77.1.6": "OTHER:SM",  # VL Whole Slide Microscopy Image
    "1.2.840.10008.5.1.4.1.1.77.1.7": "OTHER:DMS",  # Dermoscopic Photography Image
    "1.2.840.10008.5.1.4.1.1.77.1.8": "OTHER:CFM",  # Confocal Microscopy Image
    "1.2.840.10008.5.1.4.1.1.77.1.9": "OTHER:CFM",  # Confocal Microscopy Tiled Pyramidal Image
    "1.2.840.10008.5.1.4.1.1.77.2": "OTHER:XC",  # VL Multi-frame - Trial
    "1.2.840.10008.5.1.4.1.1.78.1": "OTHER:LEN",  # Lensometry Measurements
    "1.2.840.10008.5.1.4.1.1.78.2": "OTHER:AR",  # Autorefraction Measurements
    "1.2.840.10008.5.1.4.1.1.78.3": "OTHER:KER",  # Keratometry Measurements
    "1.2.840.10008.5.1.4.1.1.78.4": "OTHER:SRF",  # Subjective Refraction Measurements
    "1.2.840.10008.5.1.4.1.1.78.5": "OTHER:VA",  # Visual Acuity Measurements
    "1.2.840.10008.5.1.4.1.1.78.6": "FOLLOWS:SR",  # Spectacle Prescription Report
    "1.2.840.10008.5.1.4.1.1.78.7": "OTHER:OAM",  # Ophthalmic Axial Measurements
    "1.2.840.10008.5.1.4.1.1.78.8": "OTHER:IOL",  # Intraocular Lens Calculations
    "1.2.840.10008.5.1.4.1.1.79.1": "FOLLOWS:SR",  # Macular Grid Thickness and Volume Report
    "1.2.840.10008.5.1.4.1.1.80.1": "OTHER:OPV",  # Ophthalmic Visual Field Static Perimetry Measurements
    "1.2.840.10008.5.1.4.1.1.81.1": "OTHER:OPM",  # Ophthalmic Thickness Map
    "1.2.840.10008.5.1.4.1.1.82.1": "OTHER:OPM",  # Corneal Topography Map
    "1.2.840.10008.5.1.4.1.1.88.1": "FOLLOWS:SR",  # Text SR - Trial
    "1.2.840.10008.5.1.4.1.1.88.2": "FOLLOWS:SR",  # Audio SR - Trial
    "1.2.840.10008.5.1.4.1.1.88.3": "FOLLOWS:SR",  # Detail SR - Trial
    "1.2.840.10008.5.1.4.1.1.88.4": "FOLLOWS:SR",  # Comprehensive SR - Trial
    "1.2.840.10008.5.1.4.1.1.88.11": "FOLLOWS:SR",  # Basic Text SR
    "1.2.840.10008.5.1.4.1.1.88.22": "FOLLOWS:SR",  # Enhanced SR
    "1.2.840.10008.5.1.4.1.1.88.33": "FOLLOWS:SR",  # Comprehensive SR
    "1.2.840.10008.5.1.4.1.1.88.34": "FOLLOWS:SR",  # Comprehensive 3D SR
    "1.2.840.10008.5.1.4.1.1.88.35": "FOLLOWS:SR",  # Extensible SR
    "1.2.840.10008.5.1.4.1.1.88.40": "FOLLOWS:SR",  # Procedure Log
    "1.2.840.10008.5.1.4.1.1.88.50": "FOLLOWS:SR",  # Mammography CAD SR
    "1.2.840.10008.5.1.4.1.1.88.59": "FOLLOWS:KO",  # Key Object Selection Document
    "1.2.840.10008.5.1.4.1.1.88.65": "FOLLOWS:SR",  # Chest CAD SR
    "1.2.840.10008.5.1.4.1.1.88.67": "FOLLOWS:SR",  # X-Ray Radiation Dose SR
    "1.2.840.10008.5.1.4.1.1.88.68": "FOLLOWS:SR",  # Radiopharmaceutical Radiation Dose SR
    "1.2.840.10008.5.1.4.1.1.88.69": "FOLLOWS:SR",  # Colon CAD SR
    "1.2.840.10008.5.1.4.1.1.88.70": "FOLLOWS:SR",  # Implantation Plan SR
    "1.2.840.10008.5.1.4.1.1.88.71": "FOLLOWS:SR",  # Acquisition Context SR
    "1.2.840.10008.5.1.4.1.1.88.72": "FOLLOWS:SR",  # Simplified Adult Echo SR
    "1.2.840.10008.5.1.4.1.1.88.73": "FOLLOWS:SR",  # Patient Radiation Dose SR
    "1.2.840.10008.5.1.4.1.1.88.74": "FOLLOWS:SR",  # Planned Imaging Agent Administration SR
    "1.2.840.10008.5.1.4.1.1.88.75": "FOLLOWS:SR",  # Performed Imaging Agent Administration SR
    "1.2.840.10008.5.1.4.1.1.88.76": "FOLLOWS:SR",  # Enhanced X-Ray Radiation Dose SR
    "1.2.840.10008.5.1.4.1.1.88.77": "FOLLOWS:SR",  # Waveform Annotation SR
    "1.2.840.10008.5.1.4.1.1.90.1": "FOLLOWS:ASMT",  # Content Assessment Results
    "1.2.840.10008.5.1.4.1.1.91.1": "FOLLOWS:ANN",  # Microscopy Bulk Simple Annotations
    "1.2.840.10008.5.1.4.1.1.104.1": "FOLLOWS:DOC",  # Encapsulated PDF
    "1.2.840.10008.5.1.4.1.1.104.2": "FOLLOWS:DOC",  # Encapsulated CDA
    "1.2.840.10008.5.1.4.1.1.104.3": "FOLLOWS:M3D",  # Encapsulated STL
    "1.2.840.10008.5.1.4.1.1.104.4": "FOLLOWS:M3D",  # Encapsulated OBJ
    "1.2.840.10008.5.1.4.1.1.104.5": "FOLLOWS:TEXTUREMAP",  # Encapsulated MTL
    "1.2.840.10008.5.1.4.1.1.128": "OTHER:PT",  # Positron Emission Tomography Image
    "1.2.840.10008.5.1.4.1.1.128.1": "OTHER:PT",  # Legacy Converted Enhanced PET Image
    "1.2.840.10008.5.1.4.1.1.129": "FOLLOWS:PR",  # Standalone PET Curve, retired
    "1.2.840.10008.5.1.4.1.1.130": "OTHER:PT",  # Enhanced PET Image
    "1.2.840.10008.5.1.4.1.1.131": "FOLLOWS:PR",  # Basic Structured Display
    "1.2.840.10008.5.1.4.1.1.200.1": "OTHER:NONPATIENT",  # CT Defined Procedure Protocol
    "1.2.840.10008.5.1.4.1.1.200.2": "FOLLOWS:CTPROTOCOL",  # CT Performed Procedure Protocol
    "1.2.840.10008.5.1.4.1.1.200.3": "OTHER:NONPATIENT",  # Protocol Approval
    "1.2.840.10008.5.1.4.1.1.200.7": "OTHER:NONPATIENT",  # XA Defined Procedure Protocol
    "1.2.840.10008.5.1.4.1.1.200.8": "FOLLOWS:XAPROTOCOL",  # XA Performed Procedure Protocol
    "1.2.840.10008.5.1.4.1.1.201.1": "OTHER:NONPATIENT",  # Inventory
    "1.2.840.10008.5.1.4.1.1.481.1": "FOLLOWS:RTIMAGE",  # RT Image
    "1.2.840.10008.5.1.4.1.1.481.2": "FOLLOWS:RTDOSE",  # RT Dose
    "1.2.840.10008.5.1.4.1.1.481.3": "FOLLOWS:RTSTRUCT",  # RT Structure Set
    "1.2.840.10008.5.1.4.1.1.481.4": "FOLLOWS:RTRECORD",  # RT Beams Treatment Record
    "1.2.840.10008.5.1.4.1.1.481.5": "FOLLOWS:RTPLAN",  # RT Plan
    "1.2.840.10008.5.1.4.1.1.481.6": "FOLLOWS:RTRECORD",  # RT Brachy Treatment Record
    "1.2.840.10008.5.1.4.1.1.481.7": "FOLLOWS:RTRECORD",  # RT Treatment Summary Record
    "1.2.840.10008.5.1.4.1.1.481.8": "FOLLOWS:RTPLAN",  # RT Ion Plan
    "1.2.840.10008.5.1.4.1.1.481.9": "FOLLOWS:RTRECORD",  # RT Ion Beams Treatment Record
    "1.2.840.10008.5.1.4.1.1.481.10": "FOLLOWS:RTINTENT",  # RT Physician Intent
    "1.2.840.10008.5.1.4.1.1.481.11": "FOLLOWS:RTSEGANN",  # RT Segment Annotation
    "1.2.840.10008.5.1.4.1.1.481.12": "FOLLOWS:RTRAD",  # RT Radiation Set
    "1.2.840.10008.5.1.4.1.1.481.13": "FOLLOWS:RTRAD",  # C-Arm Photon-Electron Radiation
    "1.2.840.10008.5.1.4.1.1.481.14": "FOLLOWS:RTRAD",  # Tomotherapeutic Radiation
    "1.2.840.10008.5.1.4.1.1.481.15": "FOLLOWS:RTRAD",  # Robotic-Arm Radiation
    "1.2.840.10008.5.1.4.1.1.481.16": "FOLLOWS:RTRECORD",  # RT Radiation Record Set
    "1.2.840.10008.5.1.4.1.1.481.17": "FOLLOWS:RTRECORD",  # RT Radiation Salvage Record
    "1.2.840.10008.5.1.4.1.1.481.18": "FOLLOWS:RTRECORD",  # Tomotherapeutic Radiation Record
    "1.2.840.10008.5.1.4.1.1.481.19": "FOLLOWS:RTRECORD",  # C-Arm Photon-Electron Radiation Record
    "1.2.840.10008.5.1.4.1.1.481.20": "FOLLOWS:RTRECORD",  # Robotic Radiation Record
    "1.2.840.10008.5.1.4.1.1.481.21": "FOLLOWS:RTPLAN",  # RT Radiation Set Delivery Instruction
    "1.2.840.10008.5.1.4.1.1.481.22": "FOLLOWS:RTPLAN",  # RT Treatment Preparation
    "1.2.840.10008.5.1.4.1.1.481.23": "FOLLOWS:RTIMAGE",  # Enhanced RT Image
    "1.2.840.10008.5.1.4.1.1.481.24": "FOLLOWS:RTIMAGE",  # Enhanced Continuous RT Image
    "1.2.840.10008.5.1.4.1.1.481.25": "FOLLOWS:RTPLAN",  # RT Patient Position Acquisition Instruction
    "1.2.840.10008.5.1.4.1.1.501.1": "OTHER:DICOS",  # DICOS CT Image
    "1.2.840.10008.5.1.4.1.1.501.2.1": "OTHER:DICOS",  # DICOS Digital X-Ray - For Presentation
    "1.2.840.10008.5.1.4.1.1.501.2.2": "OTHER:DICOS",  # DICOS Digital X-Ray - For Processing
    "1.2.840.10008.5.1.4.1.1.501.3": "OTHER:DICOS",  # DICOS Threat Detection Report
    "1.2.840.10008.5.1.4.1.1.501.4": "OTHER:DICOS",  # DICOS 2D AIT
    "1.2.840.10008.5.1.4.1.1.501.5": "OTHER:DICOS",  # DICOS 3D AIT
    "1.2.840.10008.5.1.4.1.1.501.6": "OTHER:DICOS",  # DICOS Quadrupole Resonance (QR)
    "1.2.840.10008.5.1.4.1.1.601.1": "OTHER:DICONDE",  # Eddy Current Image
    "1.2.840.10008.5.1.4.1.1.601.2": "OTHER:DICONDE",  # Eddy Current Multi-frame Image
    "1.2.840.10008.5.1.4.34.1": "FOLLOWS:RTPLAN",  # RT Beams Delivery Instruction - Trial
    "1.2.840.10008.5.1.4.34.7": "FOLLOWS:RTPLAN",  # RT Beams Delivery Instruction
    "1.2.840.10008.5.1.4.34.10": "FOLLOWS:RTPLAN",  # RT Brachy Application Setup Delivery Instruction
    "1.2.840.10008.5.1.4.38.1": "OTHER:NONPATIENT",  # Hanging Protocol
    "1.2.840.10008.5.1.4.39.1": "OTHER:NONPATIENT",  # Color Palette
    "1.2.840.10008.5.1.4.43.1": "OTHER:NONPATIENT",  # Generic Implant Template
    "1.2.840.10008.5.1.4.44.1": "OTHER:NONPATIENT",  # Implant Assembly Template
    "1.2.840.10008.5.1.4.45.1": "OTHER:NONPATIENT",  # Implant Template Group
}

# Defined terms of (0008,0060), by category; a term under FOLLOWS and OTHER is its own kind.
_TERMS: Final[dict[str, str]] = {
    CT: "CT",
    MRI: "MR MA MS",  # MA and MS (MR angiography, MR spectroscopy) are retired
    XRAY: "CR DX RG MG XA RF PX IO CF DF DS VF",  # cine-, digital and videofluorography, DSA: retired
    ASK: "OT SC HC",  # SC is no defined term, but a common one
    FOLLOWS: "SR PR KO SEG REG FID RWV PLAN ANN DOC M3D SMR ASMT TEXTUREMAP CTPROTOCOL XAPROTOCOL"
    " RTDOSE RTIMAGE RTINTENT RTPLAN RTRAD RTRECORD RTSEGANN RTSTRUCT",
    "OTHER": "AR AU BDUS BI BMD CFM DG DMS ECG EEG EMG EOG EPS ES GM HD IOL IVOCT IVUS KER LEN LS NM OAM OCT OP OPM"
    " OPT OPTBSV OPTENF OPV OSS PA POS PT RESP SM SRF STAIN TG US VA XC",
}
_RETIRED_TERMS: Final[dict[str, str]] = {
    "AS": "ES",  # angioscopy
    "CD": "US",  # colour flow Doppler
    "CP": "ES",  # colposcopy
    "CS": "ES",  # cystoscopy
    "DD": "US",  # duplex Doppler
    "DM": "GM",  # digital microscopy
    "EC": "US",  # echocardiography
    "FA": "OP",  # fluorescein angiography
    "FS": "OP",  # fundoscopy
    "LP": "ES",  # laparoscopy
    "OPR": "AR",  # ophthalmic refraction
    "ST": "NM",  # single-photon emission tomography
}
_KINDS: Final[dict[str, str]] = {
    **{term: f"{category}:{term}" for category, terms in _TERMS.items() for term in terms.split()},
    **{term: f"{OTHER_PREFIX}{kind}" for term, kind in _RETIRED_TERMS.items()},
}

# Value 3 and later ones of (0008,0008) Image Type of maps and projections that are calculated from images, and may look
# like those of another modality: PS3.3 C.8.16.1.4 (CT and MR), C.8.13.1.1.1.4 (MR), C.8.16.2.1.3 (projections); below
# them what consoles of CT and MR write for the same.
DERIVED_MAPS: Final = frozenset(
    {
        "DIVISION", "MASKED", "MAXIMUM", "MINIMUM", "MTT", "MULTIPLICATION", "QUANTITY", "RCBF", "RCBV",
        "STD_DEVIATION", "SUBTRACTION", "T_TEST", "TTP", "Z_SCORE",
        "ADC", "DIFFUSION_ANISO", "METABOLITE_MAP", "NEI", "PEI", "PERFUSION", "R2_MAP", "R2_STAR_MAP",
        "RHO_MAP", "T1_MAP", "T2_MAP", "T2_STAR_MAP", "TCS",
        "MAX_IP", "MIN_IP",
        "ATT", "CBF", "CBV", "COLFA", "EADC", "FA", "MINIP", "MIP", "MPERM", "PBP", "PERM", "RELCBF",
        "RELCBV", "RELMTT", "RELTTP", "SUB", "TMAX", "TRACEW", "TTD", "TTS",
    }
)  # fmt: skip


def is_derived_map(image_type: str) -> bool:
    """Return whether Image Type (0008,0008), its values joined by backslashes, names a calculated map or projection."""
    pixels, *rest = [value.strip() for value in image_type.upper().split("\\")]
    return pixels == "DERIVED" and not DERIVED_MAPS.isdisjoint(word for value in rest[1:] for word in value.split())


def _category(entry: str | None) -> str | None:
    return entry if entry is None or entry.startswith(OTHER_PREFIX) else entry.partition(":")[0]


def sop_class_category(uid: str) -> str | None:
    """Return the category of a SOP Class UID; ``None`` for a private, unknown or absent one."""
    return _category(_SOP_CLASSES.get(uid))


def modality_category(term: str) -> str | None:
    """Return the category of a defined term of (0008,0060), without padding; ``None`` for others (``ct``, ``CAT``)."""
    return _category(_KINDS.get(term.strip()))


def kind_of(sop_class_uid: str, modality: str) -> str:
    """Return the folder below ``OTHER/`` (``US``, ``SR``, ``RTDOSE``) of an object OTHER or FOLLOWS, else ``""``."""
    for entry in (_SOP_CLASSES.get(sop_class_uid), _KINDS.get(modality.strip())):
        if entry and entry.startswith((OTHER_PREFIX, FOLLOWS)):
            return entry.partition(":")[2]
    return ""


def tables() -> tuple[dict[str, str], dict[str, str]]:
    """Return both tables: category or ``FOLLOWS:<KIND>`` by SOP Class UID, and by defined term of Modality."""
    return dict(_SOP_CLASSES), dict(_KINDS)
