"""Files and bytes to upright RGB pixels of a model's size, thumbnails and perceptual hashes."""
