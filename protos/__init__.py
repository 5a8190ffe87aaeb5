"""The wire contract; what is beside the .proto files is generated."""
