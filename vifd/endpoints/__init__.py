"""The use cases: negotiation, the life of an endpoint, the journal, recovery and policy. No grpc, no pyroute2, no ioctl."""
