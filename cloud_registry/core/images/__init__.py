"""What a container image is made of, as bytes and documents. Pure: no daemon, no network, no clock."""
