"""Labelled pictures, captions and names on disk: what a folder or a CSV file holds, before any picture is decoded."""
