"""Loading: from a name, folder, file or hub id to a checked model."""
