"""Worlds whose exact answer is known, and guidance rules judged there by whole chains. No file imports ComfyUI."""
