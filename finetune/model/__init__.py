"""What of a model is trained, and how: parameter groups, adapters, frozen trunk, averages."""
