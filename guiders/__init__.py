"""Adapters between the maths and ComfyUI's sampling."""
