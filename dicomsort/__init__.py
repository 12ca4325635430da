"""dicomsort sorts an inbox of medical images by what they are.

inbox/ ──discover──> files ──headers──> series, studies ──┐
          a few frames of each series ──pixels──> model ──┴─classify──> verdicts, each with its reason
                                                                            │
            outbox/{CT,MRI,XRAY,OTHER,REVIEW,…} <──execute (journalled)── plan (pure, sealed)
            manifest.csv, summary <──report──┘
"""

from __future__ import annotations

__version__ = "0.1.0"
