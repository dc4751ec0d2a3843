"""How keys and values travel between devices: communicators, their backends, and the transports built on them."""
