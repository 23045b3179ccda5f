"""TIFF files: which of their pages is the photo, and the kinds of pixels that Pillow reads wrong or not."""
