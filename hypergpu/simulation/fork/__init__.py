"""Fork of a run into virtual time: its measured links, its machines and its place on the learning curve."""
