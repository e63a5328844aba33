"""The AMQP side of the hub: cloud-to-device sends, feedback, and the built-in Event Hubs endpoint."""
