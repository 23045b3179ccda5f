"""Collections in a local folder: Qdrant Edge in a process of its own, shared by the commands of one user."""
