"""Pictures over HTTP: stored files by id, thumbnails, uploads."""
