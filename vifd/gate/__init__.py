"""The door: listeners, who is on the other side, admission, the relay to grpc, and the hand-off of descriptors."""
