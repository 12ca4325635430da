"""Sending to a PACS and receiving from it: C-STORE (PS3.4 Annex B) and STOW-RS (PS3.18 10.5)."""
