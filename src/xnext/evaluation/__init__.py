"""What a trained network knows: its accuracy, its predictions, where it looks, and what it costs."""
