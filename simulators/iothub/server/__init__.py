"""The shells of the hub: sockets, TLS, HTTP, files and the clock around the core and the codecs."""
