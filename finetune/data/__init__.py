"""Labelled pictures to batches: manifests, splits, captions, duplicates, replay."""
