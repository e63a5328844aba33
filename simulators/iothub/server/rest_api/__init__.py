"""The HTTPS side of the hub, one module a topic; `api` puts their routes together."""
