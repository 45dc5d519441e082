"""Model servers over HTTP: addresses and keys, connections, and what a failed request means."""
