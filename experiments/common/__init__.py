"""What the experiments share, and in rooms of their own the parts of the longer ones."""
