"""Quality of guidance rules on the demo models, against known truth: `python3 dev.py quality`."""
