"""The client library of vifd."""
