"""Labelled pictures, captions and names on disk: what a folder or CSV file holds, nothing decoded."""
