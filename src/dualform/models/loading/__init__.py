"""A name, folder, file or hub id in, a checked model out."""
