"""What can be drawn of a trained model."""
