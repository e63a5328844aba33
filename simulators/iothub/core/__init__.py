"""What the hub decides, without IO: identities, keys, twins, sessions, methods, events and queries.

Handles: every rule of the service that needs no clock of its own. Leaves to the caller: time (`now`, seconds since the
epoch), chance (`Entropy`), sockets, and carrying out the effects that calls leave behind (`Hub.take_effects`).
"""
