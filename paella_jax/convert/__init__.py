"""Published weights <-> run folders: one `Released` record per family, one engine, one command."""
