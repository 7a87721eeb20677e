"""All that knows transformers: loading, anatomy, the shared prefix, recording, weight changes."""
