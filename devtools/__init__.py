"""What `dev.py` is made of: the environment, a real ComfyUI server and its client, the demo and the checks."""
