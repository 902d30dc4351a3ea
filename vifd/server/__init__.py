"""gRPC: servicers that convert, call one use case and convert back; the only handwritten code that imports grpc."""
