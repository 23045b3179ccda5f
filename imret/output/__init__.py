"""What commands print and write: console, formats, contact sheet, thumbnails in the terminal, copies."""
