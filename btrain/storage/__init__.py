"""The run directory: what a peer must not forget, written so that `kill -9` and a full disk leave nothing half done."""
