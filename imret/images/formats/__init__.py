"""What imret reads of files itself, where Pillow does not, or not rightly: a module a format."""
