"""What is looked at in a browser: the report of a run, and the page on which a person decides what was held back."""
