"""What runs unattended: ``watch`` looks into an inbox every so often, ``forwarding`` sends on what was sorted."""
