"""The `imret` command: one module a sub-command, loaded when it is typed."""
