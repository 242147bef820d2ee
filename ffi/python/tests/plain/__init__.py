"""What golden_ctypes.py is made of. Nothing here imports the package gradus, torch or safetensors."""
