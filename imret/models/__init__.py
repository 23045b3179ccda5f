"""Model names and files to an encoder: pictures and texts to unit vectors."""
