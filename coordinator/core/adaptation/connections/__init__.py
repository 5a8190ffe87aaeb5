"""Choice of the connections of each node, by measured rates."""
