"""A changed model written for others: checkpoint, card, licence, upload."""
