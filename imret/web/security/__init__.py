"""What a request must pass before the application sees it: Host, Origin, token, size."""
