"""Pretrained towers by name: from installed packages (`embedded`), a local folder, torchvision, timm or a hub."""
