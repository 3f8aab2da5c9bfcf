"""Plans, and the decision among them."""
