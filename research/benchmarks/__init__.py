"""What REG costs: `python3 dev.py bench`."""
