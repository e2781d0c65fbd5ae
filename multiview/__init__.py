"""The methods: tensors in, tensors out. Nothing here imports ComfyUI."""
