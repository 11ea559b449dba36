"""What measures the rules and makes the demo models: `python3 dev.py lab`, `quality`, `train`, `bench`. It never ships."""
