"""The maths of rectified guidance: tensors in, tensors out. Nothing here imports ComfyUI."""
