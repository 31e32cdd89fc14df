"""Where data and eval meet: recipe to samples, checkpoint to evaluation."""
