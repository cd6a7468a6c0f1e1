"""File formats and nothing else: safetensors, torch files, published folders, name tables, tar."""
