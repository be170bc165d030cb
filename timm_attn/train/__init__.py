"""Training: fine-tuning on a folder of images, its log and export, and recipes for timm's ``train.py``."""
